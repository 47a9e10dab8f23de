/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A batch of datagrams costs two calls of the system and takes the mutex of the swarms once. All
 * memory is allocated before the first datagram, and a reply is written where it is sent from.
 */
#define _GNU_SOURCE
#include "udp.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define MAX_SOCKETS 64
#define CONTROL_BYTES 64 /* one IP_PKTINFO or IPV6_PKTINFO takes at most 40 */

#define HEADER_BYTES 16
#define ANNOUNCE_BYTES 98
#define ANNOUNCE_REPLY_BYTES 20
#define MAX_PEERS4 ((UDP_MAX_REPLY - ANNOUNCE_REPLY_BYTES) / SWARMS_PEER4_BYTES)
#define MAX_PEERS6 ((1452 - ANNOUNCE_REPLY_BYTES) / SWARMS_PEER6_BYTES)
#define ERROR_ACTION 3

static const uint8_t magic[CONNECTION_ID_BYTES] = {0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80};
static const char bad_port[] = "port: is not between 1 and 65535";

struct udp_socket {
    int descriptor;
    bool any; /* bound to all addresses */
};

struct udp_server {
    struct swarms *swarms;
    struct connection_ids ids;
    int poll, wake;
    size_t count;
    struct udp_socket sockets[MAX_SOCKETS];
    struct mmsghdr incoming[BATCH], outgoing[BATCH];
    struct iovec in_vectors[BATCH], out_vectors[BATCH];
    struct sockaddr_in6 names[BATCH];
    union {
        struct cmsghdr aligned;
        uint8_t bytes[CONTROL_BYTES];
    } control[BATCH];
    uint8_t requests[BATCH][UDP_MAX_REQUEST];
    uint8_t replies[BATCH][UDP_MAX_REPLY];
};

static uint32_t get32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static uint64_t get64(const uint8_t *at)
{
    return (uint64_t)get32(at) << 32 | get32(at + 4);
}

static void put32(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 24);
    at[1] = (uint8_t)(value >> 16);
    at[2] = (uint8_t)(value >> 8);
    at[3] = (uint8_t)value;
}

/* -- packets ----------------------------------------------------------------------------------- */

static size_t error_reply(uint8_t *reply, const char *reason)
{
    size_t size = strlen(reason);
    put32(reply, ERROR_ACTION);
    memcpy(reply + 8, reason, size);
    return 8 + size;
}

static size_t announce(struct swarms *swarms, const uint8_t *packet, const uint8_t *address,
                       size_t address_bytes, int64_t now, uint8_t *reply,
                       enum swarms_outcome *outcome)
{
    struct swarms_request request = {.address_bytes = (uint8_t)address_bytes, .one_family = true};
    memcpy(request.info_hash, packet + 16, SWARMS_HASH_BYTES);
    memcpy(request.peer_id, packet + 36, SWARMS_HASH_BYTES);
    memcpy(request.address, address, address_bytes);
    uint64_t left = get64(packet + 64);
    request.left = left > INT64_MAX ? -1 : (int64_t)left;
    uint32_t event = get32(packet + 80);
    request.event = event <= SWARMS_PAUSED ? (uint8_t)event : SWARMS_NONE;
    request.numwant = (int32_t)get32(packet + 92);
    request.port = (uint16_t)(packet[96] << 8 | packet[97]);
    /* Clients that stop may send port 0; nobody will be told to connect to it. */
    if (request.port == 0 && request.event != SWARMS_STOPPED) {
        *outcome = SWARMS_COUNT_MALFORMED;
        return error_reply(reply, bad_port);
    }
    bool six = address_bytes == 16;
    uint8_t *peers = reply + ANNOUNCE_REPLY_BYTES;
    struct swarms_answer answer = {.room = six ? MAX_PEERS6 : MAX_PEERS4,
                                   .peers4 = six ? NULL : peers,
                                   .peers6 = six ? peers : NULL};
    enum swarms_status status = swarms_announce_locked(swarms, &request, now, &answer);
    *outcome = swarms_outcome_of(status);
    if (status != SWARMS_OK)
        return error_reply(reply, swarms_reasons[status]);
    put32(reply + 8, answer.interval);
    put32(reply + 12, answer.counts.incomplete);
    put32(reply + 16, answer.counts.complete);
    return ANNOUNCE_REPLY_BYTES + (size_t)answer.count4 * SWARMS_PEER4_BYTES +
           (size_t)answer.count6 * SWARMS_PEER6_BYTES;
}

static size_t scrape(struct swarms *swarms, const uint8_t *packet, size_t size, uint8_t *reply)
{
    size_t count = (size - HEADER_BYTES) / SWARMS_HASH_BYTES;
    if (count > SWARMS_MAX_SCRAPE)
        count = SWARMS_MAX_SCRAPE;
    struct swarms_counts counts[SWARMS_MAX_SCRAPE];
    swarms_scrape_locked(swarms, packet + HEADER_BYTES, count, counts);
    for (size_t index = 0; index < count; ++index) {
        uint8_t *at = reply + 8 + 12 * index;
        put32(at, counts[index].complete);
        put32(at + 4, counts[index].downloaded);
        put32(at + 8, counts[index].incomplete);
    }
    return 8 + 12 * count;
}

size_t udp_respond(struct swarms *swarms, const struct connection_ids *ids, const uint8_t *packet,
                   size_t size, const uint8_t *address, size_t address_bytes, int64_t now,
                   uint8_t reply[UDP_MAX_REPLY], struct udp_tally *tally)
{
    if (size < HEADER_BYTES)
        return 0;
    uint32_t action = get32(packet + 8);
    if (action > SWARMS_SCRAPE)
        return 0;
    enum swarms_outcome outcome = SWARMS_COUNT_OK;
    size_t written = 0;
    memcpy(reply, packet + 8, 8); /* action and transaction */
    if (swarms_refuses_locked(swarms, address, address_bytes)) {
        outcome = SWARMS_COUNT_REFUSED;
    } else if (action == SWARMS_CONNECT) {
        if (memcmp(packet, magic, sizeof magic) == 0) {
            connection_id_issue(ids, address, address_bytes, now, reply + 8);
            written = HEADER_BYTES;
        } else {
            outcome = SWARMS_COUNT_MALFORMED;
        }
    } else if (!connection_id_holds(ids, address, address_bytes, now, packet)) {
        outcome = SWARMS_COUNT_DROPPED;
    } else if (action == SWARMS_SCRAPE) {
        written = scrape(swarms, packet, size, reply);
    } else if (size < ANNOUNCE_BYTES) {
        outcome = SWARMS_COUNT_MALFORMED;
    } else {
        written = announce(swarms, packet, address, address_bytes, now, reply, &outcome);
    }
    ++tally->requests[address_bytes == 16][action][outcome];
    return written;
}

void udp_count(struct swarms *swarms, const struct udp_tally *tally, double seconds)
{
    for (int action = SWARMS_CONNECT; action <= SWARMS_SCRAPE; ++action) {
        for (int family = SWARMS_IPV4; family <= SWARMS_IPV6; ++family)
            for (int outcome = 0; outcome < SWARMS_OUTCOMES; ++outcome)
                if (tally->requests[family][action][outcome])
                    swarms_count(swarms, SWARMS_UDP, (enum swarms_family)family,
                                 (enum swarms_action)action, (enum swarms_outcome)outcome,
                                 tally->requests[family][action][outcome]);
        uint64_t answered = (uint64_t)tally->requests[SWARMS_IPV4][action][SWARMS_COUNT_OK] +
                            tally->requests[SWARMS_IPV6][action][SWARMS_COUNT_OK];
        if (answered)
            swarms_observe(swarms, SWARMS_UDP, (enum swarms_action)action, seconds, answered);
    }
}

/* -- sockets ----------------------------------------------------------------------------------- */

/* Have a socket for any address say which address was asked; false with errno set. */
static bool prepare(struct udp_socket *sock)
{
    struct sockaddr_in6 six = {0};
    socklen_t size = sizeof six;
    const int on = 1;
    if (getsockname(sock->descriptor, (struct sockaddr *)&six, &size) < 0)
        return false;
    if (six.sin6_family == AF_INET6) {
        sock->any = IN6_IS_ADDR_UNSPECIFIED(&six.sin6_addr);
        return !sock->any || setsockopt(sock->descriptor, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on,
                                        sizeof on) == 0;
    }
    struct sockaddr_in four;
    memcpy(&four, &six, sizeof four);
    sock->any = four.sin_addr.s_addr == htonl(INADDR_ANY);
    return !sock->any ||
           setsockopt(sock->descriptor, IPPROTO_IP, IP_PKTINFO, &on, sizeof on) == 0;
}

struct udp_server *udp_open(struct swarms *swarms, const uint8_t key[CONNECTION_KEY_BYTES],
                            const int *descriptors, size_t count)
{
    if (count > MAX_SOCKETS) {
        errno = E2BIG;
        return NULL;
    }
    struct udp_server *server = calloc(1, sizeof *server);
    if (server == NULL)
        return NULL;
    server->swarms = swarms;
    connection_ids_init(&server->ids, key);
    server->count = count;
    server->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    server->poll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = MAX_SOCKETS};
    bool well = server->wake >= 0 && server->poll >= 0 &&
                epoll_ctl(server->poll, EPOLL_CTL_ADD, server->wake, &event) == 0;
    for (size_t index = 0; well && index < count; ++index) {
        server->sockets[index].descriptor = descriptors[index];
        event.data.u64 = index;
        well = prepare(&server->sockets[index]) &&
               epoll_ctl(server->poll, EPOLL_CTL_ADD, descriptors[index], &event) == 0;
    }
    for (size_t slot = 0; slot < BATCH; ++slot) {
        server->in_vectors[slot] =
            (struct iovec){server->requests[slot], sizeof server->requests[slot]};
        server->incoming[slot].msg_hdr.msg_name = &server->names[slot];
        server->incoming[slot].msg_hdr.msg_iov = &server->in_vectors[slot];
        server->incoming[slot].msg_hdr.msg_iovlen = 1;
        server->out_vectors[slot].iov_base = server->replies[slot];
        server->outgoing[slot].msg_hdr.msg_iov = &server->out_vectors[slot];
        server->outgoing[slot].msg_hdr.msg_iovlen = 1;
    }
    if (well)
        return server;
    int error = errno;
    udp_close(server);
    errno = error;
    return NULL;
}

void udp_close(struct udp_server *server)
{
    if (server == NULL)
        return;
    if (server->poll >= 0)
        close(server->poll);
    if (server->wake >= 0)
        close(server->wake);
    free(server);
}

void udp_stop(struct udp_server *server)
{
    const uint64_t one = 1;
    ssize_t written;
    do
        written = write(server->wake, &one, sizeof one);
    while (written < 0 && errno == EINTR);
}

/* Who sent a datagram: an address of 4 or 16 bytes; IPv4 that comes to a socket of IPv6 is IPv4.
 * Returns how many bytes, or 0 for nobody who could be answered. */
static size_t sender(const struct msghdr *header, uint8_t address[16])
{
    struct sockaddr_in6 six;
    if (header->msg_namelen >= sizeof(struct sockaddr_in)) {
        memcpy(&six, header->msg_name, sizeof six);
        if (six.sin6_port == 0)
            return 0;
        if (six.sin6_family == AF_INET) {
            struct sockaddr_in four;
            memcpy(&four, header->msg_name, sizeof four);
            memcpy(address, &four.sin_addr, 4);
            return 4;
        }
        if (six.sin6_family == AF_INET6 && header->msg_namelen >= sizeof six) {
            if (IN6_IS_ADDR_V4MAPPED(&six.sin6_addr)) {
                memcpy(address, six.sin6_addr.s6_addr + 12, 4);
                return 4;
            }
            memcpy(address, &six.sin6_addr, 16);
            return 16;
        }
    }
    return 0;
}

/* Leave the way of an answer to routing: it need not leave where the question came in. */
static void forget_interface(struct msghdr *header)
{
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part != NULL;
         part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level == IPPROTO_IPV6 && part->cmsg_type == IPV6_PKTINFO &&
            part->cmsg_len >= CMSG_LEN(sizeof(struct in6_pktinfo)))
            memset(CMSG_DATA(part) + offsetof(struct in6_pktinfo, ipi6_ifindex), 0,
                   sizeof(((struct in6_pktinfo *)0)->ipi6_ifindex));
        else if (part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_PKTINFO &&
                 part->cmsg_len >= CMSG_LEN(sizeof(struct in_pktinfo)))
            memset(CMSG_DATA(part) + offsetof(struct in_pktinfo, ipi_ifindex), 0,
                   sizeof(((struct in_pktinfo *)0)->ipi_ifindex));
    }
}

/* Send what was answered; what doesn't go out is lost, as datagrams are. */
static void send_replies(struct udp_server *server, int descriptor, unsigned count)
{
    for (unsigned done = 0; done < count;) {
        int sent = sendmmsg(descriptor, server->outgoing + done, count - done, MSG_DONTWAIT);
        if (sent < 0) {
            if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM)
                return;
            /* One that can't be sent (a firewall, no route) doesn't keep others back. */
            sent = 1;
        }
        done += (unsigned)sent;
    }
}

/* Answer one batch of a socket; 0, or the errno of a socket that is broken. */
static int serve_batch(struct udp_server *server, const struct udp_socket *sock)
{
    for (int slot = 0; slot < BATCH; ++slot) {
        /* The kernel wrote the sizes that it used over those that it may use. */
        struct msghdr *header = &server->incoming[slot].msg_hdr;
        header->msg_namelen = sizeof server->names[slot];
        header->msg_control = sock->any ? server->control[slot].bytes : NULL;
        header->msg_controllen = sock->any ? CONTROL_BYTES : 0;
    }
    int count = recvmmsg(sock->descriptor, server->incoming, BATCH, MSG_DONTWAIT, NULL);
    if (count < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : errno;
    struct timespec began, wall, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    clock_gettime(CLOCK_REALTIME, &wall);
    struct udp_tally tally = {0};
    unsigned replies = 0;
    swarms_lock(server->swarms);
    for (int slot = 0; slot < count; ++slot) {
        struct msghdr *asked = &server->incoming[slot].msg_hdr;
        uint8_t address[16];
        size_t address_bytes = sender(asked, address);
        if (address_bytes == 0)
            continue;
        size_t size = udp_respond(server->swarms, &server->ids, server->requests[slot],
                                  server->incoming[slot].msg_len, address, address_bytes,
                                  wall.tv_sec, server->replies[replies], &tally);
        if (size == 0)
            continue;
        server->out_vectors[replies].iov_len = size;
        struct msghdr *answer = &server->outgoing[replies++].msg_hdr;
        answer->msg_name = asked->msg_name;
        answer->msg_namelen = asked->msg_namelen;
        answer->msg_control = asked->msg_controllen ? asked->msg_control : NULL;
        answer->msg_controllen = asked->msg_controllen;
        if (answer->msg_control != NULL)
            forget_interface(answer);
    }
    swarms_unlock(server->swarms);
    send_replies(server, sock->descriptor, replies);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    udp_count(server->swarms, &tally,
              (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9);
    return 0;
}

int udp_serve(struct udp_server *server)
{
    for (;;) {
        struct epoll_event events[MAX_SOCKETS + 1];
        int ready = epoll_wait(server->poll, events, MAX_SOCKETS + 1, -1);
        if (ready < 0 && errno != EINTR)
            return errno;
        for (int index = 0; index < ready; ++index) {
            uint64_t place = events[index].data.u64;
            if (place == MAX_SOCKETS)
                return 0; /* the event stays, for who calls again */
            int error = serve_batch(server, &server->sockets[place]);
            if (error)
                return error;
        }
    }
}
