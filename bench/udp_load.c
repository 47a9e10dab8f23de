/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A load of UDP tracker clients on loopback, for bench/tracker_announces.py, which describes it.
 *
 *     udp_load PORT PEERS-FILE SECONDS
 *
 * Each of 256 addresses 127.0.1.x has WINDOW requests under way. First every peer of the file
 * announces once; then "warm" is printed, requests are chosen by weight, and after SECONDS one line:
 * seconds, answers to connects, to announces, to scrapes, and requests that were lost.
 *
 * The load must cost less than a tracker, or it would be what is measured: 32 addresses share a
 * socket, which takes and sends datagrams in batches, each with the source address of its client.
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "load.h"

#define ADDRESSES 256
#define SOCKETS 8
#define WINDOW 1 /* more than 256 in all overflow a receive buffer of Linux' default size */
#define BATCH 64
#define RETRY_SECONDS 0.5
#define MAX_SECONDS 120

struct peer {
    uint8_t info_hash[20];
    uint16_t port;
    uint8_t seed, padding;
};

struct client {
    uint8_t id[8];
    int connected;
    uint32_t next;            /* place in the list of this address's peers */
    uint32_t waiting[WINDOW]; /* transactions */
    double asked[WINDOW];
};

/* Requests of a socket that are sent together. */
struct outgoing {
    int descriptor;
    unsigned count;
    struct mmsghdr headers[BATCH];
    struct iovec vectors[BATCH];
    uint8_t packets[BATCH][98];
    union {
        struct cmsghdr aligned;
        uint8_t bytes[CMSG_SPACE(sizeof(struct in_pktinfo))];
    } control[BATCH];
};

static struct peer *peers;
static uint32_t count_of_peers;
static struct client clients[ADDRESSES];
static struct outgoing outgoing[SOCKETS];
static struct sockaddr_in tracker;
static uint64_t answers[3], lost;
static uint32_t transactions, warm_left;
static int warm;

/* Send what waits; what the kernel doesn't take is lost, and asked again later. */
static void flush(struct outgoing *out)
{
    for (unsigned done = 0; done < out->count;) {
        int sent = sendmmsg(out->descriptor, out->headers + done, out->count - done, 0);
        done += sent > 0 ? (unsigned)sent : 1;
    }
    out->count = 0;
}

static void ask(uint32_t address, uint32_t slot, double time)
{
    struct client *client = &clients[address];
    struct outgoing *out = &outgoing[address % SOCKETS];
    if (out->count == BATCH)
        flush(out);
    uint8_t *packet = out->packets[out->count];
    size_t size;
    uint32_t action, draw = chance(101);
    if (!client->connected)
        action = 0;
    else if (warm)
        action = draw < 50 ? 0 : draw < 100 ? 1 : 2;
    else
        action = 1;
    /* Who asked is in it: the answer comes to one socket for many. */
    uint32_t transaction = ++transactions << 10 | address << 2 | slot;
    memset(packet, 0, sizeof out->packets[0]);
    memcpy(packet, client->id, 8);
    put32(packet + 8, action);
    put32(packet + 12, transaction);
    if (action == 0) {
        static const uint8_t magic[8] = {0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80};
        memcpy(packet, magic, 8);
        size = 16;
    } else {
        uint32_t mine = (count_of_peers - address + ADDRESSES - 1) / ADDRESSES;
        uint32_t place = warm ? chance(mine) : client->next++ % mine;
        const struct peer *peer = &peers[place * ADDRESSES + address];
        memcpy(packet + 16, peer->info_hash, 20);
        size = 36;
        if (action == 1) {
            memcpy(packet + 36, "-XX0001-", 8);
            put32(packet + 52, place);
            put32(packet + 68, peer->seed ? 0 : 1);
            put32(packet + 92, 30);
            packet[96] = (uint8_t)(peer->port >> 8);
            packet[97] = (uint8_t)peer->port;
            size = 98;
        }
    }
    struct msghdr *header = &out->headers[out->count].msg_hdr;
    struct in_pktinfo source = {.ipi_spec_dst.s_addr = htonl(0x7f000100u + address)};
    out->vectors[out->count] = (struct iovec){packet, size};
    header->msg_name = &tracker;
    header->msg_namelen = sizeof tracker;
    header->msg_iov = &out->vectors[out->count];
    header->msg_iovlen = 1;
    header->msg_control = out->control[out->count].bytes;
    header->msg_controllen = sizeof out->control[0].bytes;
    struct cmsghdr *control = CMSG_FIRSTHDR(header);
    control->cmsg_level = IPPROTO_IP;
    control->cmsg_type = IP_PKTINFO;
    control->cmsg_len = CMSG_LEN(sizeof source);
    memcpy(CMSG_DATA(control), &source, sizeof source);
    ++out->count;
    client->waiting[slot] = transaction;
    client->asked[slot] = time;
}

static void hear(struct outgoing *out, double time)
{
    static uint8_t packets[BATCH][2048];
    static struct iovec vectors[BATCH];
    static struct mmsghdr headers[BATCH];
    for (int index = 0; index < BATCH; ++index) {
        vectors[index] = (struct iovec){packets[index], sizeof packets[index]};
        headers[index].msg_hdr = (struct msghdr){.msg_iov = &vectors[index], .msg_iovlen = 1};
    }
    int count = recvmmsg(out->descriptor, headers, BATCH, MSG_DONTWAIT, NULL);
    for (int index = 0; index < count; ++index) {
        const uint8_t *packet = packets[index];
        unsigned size = headers[index].msg_len;
        if (size < 8)
            continue;
        uint32_t action = get32(packet), transaction = get32(packet + 4);
        uint32_t address = transaction >> 2 & (ADDRESSES - 1), slot = transaction & (WINDOW - 1);
        struct client *client = &clients[address];
        if (action > 2 || client->waiting[slot] != transaction)
            continue;
        if (action == 0 && size >= 16) {
            memcpy(client->id, packet + 8, 8);
            client->connected = 1;
        }
        if (warm)
            ++answers[action];
        else if (action == 1 && warm_left > 0)
            --warm_left;
        ask(address, slot, time);
    }
    flush(out);
}

int main(int count, char **arguments)
{
    if (count != 4)
        return 2;
    int port = atoi(arguments[1]), seconds = atoi(arguments[3]);
    if (seconds < 1 || seconds > MAX_SECONDS)
        return 2;
    int file = open(arguments[2], O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status) < 0)
        return 1;
    count_of_peers = (uint32_t)((size_t)status.st_size / sizeof *peers);
    peers = malloc((size_t)status.st_size);
    if (peers == NULL)
        return 1;
    for (ssize_t done = 0, size; done < status.st_size; done += size) {
        size = read(file, (uint8_t *)peers + done, (size_t)(status.st_size - done));
        if (size <= 0)
            return 1;
    }
    if (count_of_peers < ADDRESSES)
        return 2;
    tracker.sin_family = AF_INET;
    tracker.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    tracker.sin_port = htons((uint16_t)port);
    int poll = epoll_create1(0);
    for (uint32_t place = 0; place < SOCKETS; ++place) {
        struct sockaddr_in name = {.sin_family = AF_INET};
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = place};
        int size = 4 << 20;
        int descriptor = socket(AF_INET, SOCK_DGRAM, 0);
        if (descriptor < 0 || bind(descriptor, (struct sockaddr *)&name, sizeof name) < 0)
            return 1;
        setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        epoll_ctl(poll, EPOLL_CTL_ADD, descriptor, &event);
        outgoing[place].descriptor = descriptor;
    }
    warm_left = count_of_peers;
    double start = now(), swept = start;
    for (uint32_t address = 0; address < ADDRESSES; ++address)
        for (uint32_t slot = 0; slot < WINDOW; ++slot)
            ask(address, slot, start);
    for (uint32_t place = 0; place < SOCKETS; ++place)
        flush(&outgoing[place]);
    for (;;) {
        struct epoll_event events[SOCKETS];
        int ready = epoll_wait(poll, events, SOCKETS, 50);
        double time = now();
        for (int index = 0; index < ready; ++index)
            hear(&outgoing[events[index].data.u32], time);
        if (!warm && warm_left == 0) {
            warm = 1;
            start = time;
            lost = 0;
            printf("warm\n");
            fflush(stdout);
        }
        if (warm && time - start >= seconds)
            break;
        if (!warm && time - start >= MAX_SECONDS)
            return 1;
        if (time - swept > RETRY_SECONDS / 5) {
            swept = time;
            for (uint32_t address = 0; address < ADDRESSES; ++address)
                for (uint32_t slot = 0; slot < WINDOW; ++slot)
                    if (time - clients[address].asked[slot] > RETRY_SECONDS) {
                        ++lost;
                        ask(address, slot, time);
                    }
            for (uint32_t place = 0; place < SOCKETS; ++place)
                flush(&outgoing[place]);
        }
    }
    printf("%f %llu %llu %llu %llu\n", now() - start, (unsigned long long)answers[0],
           (unsigned long long)answers[1], (unsigned long long)answers[2],
           (unsigned long long)lost);
    return 0;
}
