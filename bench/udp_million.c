/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A crowd of UDP tracker clients, and a probe; for bench/tracker_million.py, which describes them.
 *
 *     udp_million crowd PORT PEERS SWARMS SIX_PERCENT SECONDS
 *     udp_million probe PORT SWARMS SECONDS RATE
 *
 * The crowd: an address has PEERS_EACH peers, each with a port and a swarm of its own; swarms are
 * chosen by Zipf's law, and none has more than LARGEST peers. Addresses are 127.1.0.0 and following,
 * and fd00::a:a:0:0 with a number in the first 64 bits. First each address connects and each of its
 * peers announces, WINDOW of them at a time; then a line is printed: seconds, answers to announces,
 * lost requests. For SECONDS random addresses announce again, with the connection ids that they have
 * unless these are old, and a second such line follows.
 *
 * The probe announces RATE times a second, whatever is answered, with one connection id that it
 * asks for at first and again every ID_SECONDS. Each announce is one line: when it was sent (seconds
 * since the epoch), and milliseconds until the kernel had the answer, or -1.
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "load.h"

#define PEERS_EACH 8
#define LARGEST 20000u
#define WINDOW 192 /* more overflow a receive buffer of Linux' default size */
#define BATCH 64
#define RETRY_SECONDS 0.5
#define ID_SECONDS 100 /* the tracker's hold for two to three minutes */
#define MAX_PEERS 4000000u
#define MAX_SECONDS 600
#define MAX_RATE 20000
#define WANTED 30

enum { FOUR, SIX };

struct address {
    uint8_t id[8];
    uint32_t got; /* second since the start plus one, or 0 without an id */
};

struct slot {
    uint32_t address, done, transaction;
    double asked;
};

/* Datagrams of a socket that are sent together. */
struct outgoing {
    int descriptor;
    unsigned count;
    struct mmsghdr headers[BATCH];
    struct iovec vectors[BATCH];
    uint8_t packets[BATCH][98];
    union {
        struct cmsghdr aligned;
        uint8_t bytes[CMSG_SPACE(sizeof(struct in6_pktinfo))];
    } control[BATCH];
};

static struct sockaddr_in tracker4;
static struct sockaddr_in6 tracker6;
static struct outgoing outgoing[2];
static struct address *addresses;
static uint32_t *swarm_of, count_of_addresses, next_address, six_percent, transactions;
static struct slot slots[WINDOW];
static uint64_t answers, lost;
static int keeping;
static volatile sig_atomic_t ended;

static void end(int number)
{
    (void)number;
    ended = 1;
}

/* Begin a datagram; its size. */
static size_t connect_packet(uint8_t *packet, uint32_t transaction)
{
    static const uint8_t magic[8] = {0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80};
    memcpy(packet, magic, 8);
    put32(packet + 8, 0);
    put32(packet + 12, transaction);
    return 16;
}

static size_t announce_packet(uint8_t *packet, const uint8_t *id, uint32_t transaction,
                              uint32_t swarm, uint16_t port, int seed)
{
    memset(packet, 0, 98);
    memcpy(packet, id, 8);
    put32(packet + 8, 1);
    put32(packet + 12, transaction);
    put32(packet + 16, swarm);
    put32(packet + 20, swarm * 2654435761u);
    memcpy(packet + 36, "-XX0001-", 8);
    put32(packet + 52, transaction);
    put32(packet + 68, seed ? 0 : 1);
    put32(packet + 92, WANTED);
    packet[96] = (uint8_t)(port >> 8);
    packet[97] = (uint8_t)port;
    return 98;
}

/* -- the crowd --------------------------------------------------------------------------------- */

/* Give each peer its swarm; 0 without memory. */
static int choose_swarms(uint32_t peers, uint32_t swarms)
{
    double *up_to = malloc(swarms * sizeof *up_to), sum = 0;
    uint32_t *sizes = calloc(swarms, sizeof *sizes);
    swarm_of = malloc(peers * sizeof *swarm_of);
    if (up_to == NULL || sizes == NULL || swarm_of == NULL)
        return 0;
    for (uint32_t swarm = 0; swarm < swarms; ++swarm)
        up_to[swarm] = sum += 1.0 / (swarm + 1);
    for (uint32_t peer = 0; peer < peers; ++peer) {
        double drawn = chance(1u << 31) / 2147483648.0 * sum;
        uint32_t low = 0, high = swarms - 1;
        while (low < high) {
            uint32_t middle = low + (high - low) / 2;
            if (up_to[middle] <= drawn)
                low = middle + 1;
            else
                high = middle;
        }
        while (sizes[low] >= LARGEST)
            low = chance(swarms);
        ++sizes[low];
        swarm_of[peer] = low;
    }
    free(up_to);
    free(sizes);
    return 1;
}

static int kind_of(uint32_t address)
{
    return address % 100 < six_percent ? SIX : FOUR;
}

/* What doesn't go out is lost, and asked again later. */
static void flush(struct outgoing *out)
{
    for (unsigned done = 0; done < out->count;) {
        int sent = sendmmsg(out->descriptor, out->headers + done, out->count - done, 0);
        done += sent > 0 ? (unsigned)sent : 1;
    }
    out->count = 0;
}

static void ask(uint32_t place, double time, uint32_t second)
{
    struct slot *slot = &slots[place];
    struct address *address = &addresses[slot->address];
    int kind = kind_of(slot->address);
    struct outgoing *out = &outgoing[kind];
    if (out->count == BATCH)
        flush(out);
    uint32_t transaction = slot->transaction = ++transactions << 8 | place;
    uint8_t *packet = out->packets[out->count];
    size_t size;
    if (address->got == 0 || second + 1 - address->got > ID_SECONDS) {
        address->got = 0;
        size = connect_packet(packet, transaction);
    } else {
        uint32_t peer = slot->address * PEERS_EACH + slot->done;
        size = announce_packet(packet, address->id, transaction, swarm_of[peer],
                               (uint16_t)(1024 + slot->done), peer * 2654435761u >> 30 != 0);
    }
    struct msghdr *header = &out->headers[out->count].msg_hdr;
    out->vectors[out->count] = (struct iovec){packet, size};
    *header = (struct msghdr){.msg_iov = &out->vectors[out->count],
                              .msg_iovlen = 1,
                              .msg_control = out->control[out->count].bytes};
    struct cmsghdr *control = &out->control[out->count].aligned;
    if (kind == FOUR) {
        struct in_pktinfo source = {.ipi_spec_dst.s_addr = htonl(0x7f010000u + slot->address)};
        header->msg_name = &tracker4;
        header->msg_namelen = sizeof tracker4;
        header->msg_controllen = CMSG_SPACE(sizeof source);
        control->cmsg_level = IPPROTO_IP;
        control->cmsg_type = IP_PKTINFO;
        control->cmsg_len = CMSG_LEN(sizeof source);
        memcpy(CMSG_DATA(control), &source, sizeof source);
    } else {
        struct in6_pktinfo source = {.ipi6_addr.s6_addr = {0xfd}};
        put32(source.ipi6_addr.s6_addr + 4, slot->address);
        source.ipi6_addr.s6_addr[15] = 1;
        header->msg_name = &tracker6;
        header->msg_namelen = sizeof tracker6;
        header->msg_controllen = CMSG_SPACE(sizeof source);
        control->cmsg_level = IPPROTO_IPV6;
        control->cmsg_type = IPV6_PKTINFO;
        control->cmsg_len = CMSG_LEN(sizeof source);
        memcpy(CMSG_DATA(control), &source, sizeof source);
    }
    ++out->count;
    slot->asked = time;
}

/* Have a slot go on with another address; 0 when there is none. */
static int take(struct slot *slot)
{
    slot->done = 0;
    slot->transaction = 0;
    if (keeping)
        slot->address = chance(count_of_addresses);
    else if (next_address == count_of_addresses)
        return 0;
    else
        slot->address = next_address++;
    return 1;
}

static unsigned hear(struct outgoing *out, double time, uint32_t second)
{
    static uint8_t packets[BATCH][2048];
    static struct iovec vectors[BATCH];
    static struct mmsghdr headers[BATCH];
    unsigned finished = 0;
    for (int index = 0; index < BATCH; ++index) {
        vectors[index] = (struct iovec){packets[index], sizeof packets[index]};
        headers[index].msg_hdr = (struct msghdr){.msg_iov = &vectors[index], .msg_iovlen = 1};
    }
    int count = recvmmsg(out->descriptor, headers, BATCH, MSG_DONTWAIT, NULL);
    for (int index = 0; index < count; ++index) {
        const uint8_t *packet = packets[index];
        if (headers[index].msg_len < 16)
            continue;
        uint32_t action = get32(packet), place = packet[7];
        if (place >= WINDOW || slots[place].transaction != get32(packet + 4) || action > 1)
            continue;
        struct slot *slot = &slots[place];
        if (action == 0) {
            memcpy(addresses[slot->address].id, packet + 8, 8);
            addresses[slot->address].got = second + 1;
        } else {
            ++answers;
            if (++slot->done == PEERS_EACH && !take(slot)) {
                ++finished;
                continue;
            }
        }
        ask(place, time, second);
    }
    return finished;
}

/* Announce until everyone did, or until a time; seconds that it took. */
static double run(double begin, double until)
{
    double start = now(), swept = start;
    unsigned busy = 0;
    answers = lost = 0;
    for (uint32_t place = 0; place < WINDOW; ++place)
        if (take(&slots[place])) {
            ask(place, start, (uint32_t)(start - begin));
            ++busy;
        }
    while (busy && !ended) {
        flush(&outgoing[FOUR]);
        flush(&outgoing[SIX]);
        struct pollfd polled[2] = {{outgoing[FOUR].descriptor, POLLIN, 0},
                                   {outgoing[SIX].descriptor, POLLIN, 0}};
        poll(polled, 2, 50);
        double time = now();
        uint32_t second = (uint32_t)(time - begin);
        for (int kind = 0; kind < 2; ++kind)
            if (polled[kind].revents)
                busy -= hear(&outgoing[kind], time, second);
        if (time >= until)
            break;
        if (time - swept < RETRY_SECONDS / 5)
            continue;
        swept = time;
        for (uint32_t place = 0; place < WINDOW; ++place)
            if (slots[place].transaction && time - slots[place].asked > RETRY_SECONDS) {
                ++lost;
                ask(place, time, second);
            }
    }
    return now() - start;
}

static int crowd(uint32_t peers, uint32_t swarms, double seconds)
{
    const int size = 4 << 20, on = 1;
    count_of_addresses = peers / PEERS_EACH;
    addresses = calloc(count_of_addresses, sizeof *addresses);
    if (addresses == NULL || !choose_swarms(peers, swarms))
        return 1;
    for (int kind = 0; kind < 2; ++kind) {
        struct outgoing *out = &outgoing[kind];
        out->descriptor = socket(kind == FOUR ? AF_INET : AF_INET6, SOCK_DGRAM, 0);
        if (out->descriptor < 0)
            return 1;
        setsockopt(out->descriptor, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        struct sockaddr_in four = {.sin_family = AF_INET};
        struct sockaddr_in6 six = {.sin6_family = AF_INET6};
        /* Addresses that no interface has, but that a route says are here. */
        if (kind == SIX)
            setsockopt(out->descriptor, IPPROTO_IPV6, IPV6_FREEBIND, &on, sizeof on);
        if (kind == FOUR ? bind(out->descriptor, (struct sockaddr *)&four, sizeof four)
                         : bind(out->descriptor, (struct sockaddr *)&six, sizeof six))
            return 1;
    }
    double begin = now();
    double took = run(begin, begin + MAX_SECONDS);
    printf("%f %llu %llu\n", took, (unsigned long long)answers, (unsigned long long)lost);
    fflush(stdout);
    keeping = 1;
    if (seconds > 0) {
        took = run(begin, now() + seconds);
        printf("%f %llu %llu\n", took, (unsigned long long)answers, (unsigned long long)lost);
    }
    return answers == 0;
}

/* -- the probe --------------------------------------------------------------------------------- */

struct sample {
    double sent, heard;
};

/* Take in what has arrived. */
static void collect(int descriptor, struct sample *samples, uint32_t count, uint8_t *id)
{
    for (;;) {
        uint8_t packet[2048];
        union {
            struct cmsghdr aligned;
            uint8_t bytes[CMSG_SPACE(sizeof(struct timespec))];
        } control;
        struct iovec vector = {packet, sizeof packet};
        struct msghdr header = {.msg_iov = &vector,
                                .msg_iovlen = 1,
                                .msg_control = control.bytes,
                                .msg_controllen = sizeof control};
        ssize_t size = recvmsg(descriptor, &header, MSG_DONTWAIT);
        if (size < 0)
            return;
        if (size < 16)
            continue;
        uint32_t transaction = get32(packet + 4);
        struct cmsghdr *part = CMSG_FIRSTHDR(&header);
        double heard = seconds_of(CLOCK_REALTIME);
        if (part != NULL && part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(part), sizeof stamp);
            heard = (double)stamp.tv_sec + (double)stamp.tv_nsec / 1e9;
        }
        if (get32(packet) == 0)
            memcpy(id, packet + 8, 8);
        else if (get32(packet) == 1 && transaction < count && samples[transaction].heard == 0)
            samples[transaction].heard = heard;
    }
}

static int probe(uint32_t swarms, uint32_t seconds, uint32_t rate)
{
    const int on = 1;
    uint32_t total = seconds * rate, sent = 0;
    struct sample *samples = calloc(total, sizeof *samples);
    int descriptor = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000009)};
    if (samples == NULL || descriptor < 0 ||
        bind(descriptor, (struct sockaddr *)&name, sizeof name) < 0 ||
        setsockopt(descriptor, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) < 0)
        return 1;
    uint8_t packet[98], id[8] = {0};
    double start = 0, asked = -ID_SECONDS;
    const struct timespec pause = {0, 200000};
    struct pollfd polled = {descriptor, POLLIN, 0};
    while (sent < total && !ended) {
        double time = now();
        if (time - asked >= ID_SECONDS) {
            size_t size = connect_packet(packet, 0xffffffffu);
            sendto(descriptor, packet, size, 0, (struct sockaddr *)&tracker4, sizeof tracker4);
            asked = time;
            if (start == 0) {
                poll(&polled, 1, 5000);
                collect(descriptor, samples, total, id);
                start = now();
            }
        }
        for (; sent < total && start + (double)sent / rate <= time; ++sent) {
            size_t size =
                announce_packet(packet, id, sent, chance(swarms), (uint16_t)(1 + sent % 16), 0);
            samples[sent].sent = seconds_of(CLOCK_REALTIME);
            sendto(descriptor, packet, size, 0, (struct sockaddr *)&tracker4, sizeof tracker4);
        }
        collect(descriptor, samples, total, id);
        nanosleep(&pause, NULL);
    }
    poll(NULL, 0, 500);
    collect(descriptor, samples, total, id);
    for (uint32_t index = 0; index < sent; ++index)
        printf("%.6f %.4f\n", samples[index].sent,
               samples[index].heard == 0 ? -1.0
                                         : (samples[index].heard - samples[index].sent) * 1e3);
    return 0;
}

int main(int count, char **arguments)
{
    uint32_t numbers[5] = {0};
    for (int index = 2; index < count && index < 7; ++index)
        numbers[index - 2] = (uint32_t)strtoul(arguments[index], NULL, 10);
    uint16_t port = htons((uint16_t)numbers[0]);
    tracker4 = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    tracker6 = (struct sockaddr_in6){
        .sin6_family = AF_INET6, .sin6_port = port, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    signal(SIGTERM, end);
    signal(SIGINT, end);
    if (count == 7 && strcmp(arguments[1], "crowd") == 0) {
        six_percent = numbers[3];
        if (numbers[1] < PEERS_EACH || numbers[1] > MAX_PEERS || numbers[2] < numbers[1] / LARGEST + 1 ||
            numbers[2] > MAX_PEERS || six_percent > 100 || numbers[4] > MAX_SECONDS)
            return 2;
        return crowd(numbers[1], numbers[2], numbers[4]);
    }
    if (count == 6 && strcmp(arguments[1], "probe") == 0) {
        if (numbers[1] < 1 || numbers[2] < 1 || numbers[2] > MAX_SECONDS || numbers[3] < 1 ||
            numbers[3] > MAX_RATE)
            return 2;
        return probe(numbers[1], numbers[2], numbers[3]);
    }
    return 2;
}
