/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A load of UDP tracker clients on loopback, for bench/tracker_announces.py, which describes it.
 *
 *     udp_load PORT PEERS-FILE SECONDS
 *
 * Each of 256 addresses 127.0.1.x is a socket with WINDOW requests under way. First every peer of
 * the file announces once; then "warm" is printed, requests are chosen by weight, and after SECONDS
 * one line: seconds, answers to connects, to announces, to scrapes, and requests that were lost.
 */

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

#define ADDRESSES 256
#define WINDOW 4
#define RETRY_SECONDS 0.5
#define MAX_SECONDS 120

struct peer {
    uint8_t info_hash[20];
    uint16_t port;
    uint8_t seed, padding;
};

struct client {
    int descriptor;
    uint8_t id[8];
    int connected;
    uint32_t next;               /* place in the list of this address's peers */
    uint32_t announced;          /* peers that announced before the warm phase ended */
    uint32_t waiting[WINDOW];    /* transactions, 0 for none */
    double asked[WINDOW];
};

static struct peer *peers;
static uint32_t count_of_peers;
static struct client clients[ADDRESSES];
static uint64_t answers[3], lost;
static uint32_t transactions, warm_left;
static uint64_t state = 88172645463325252ull;
static int warm;

static uint32_t chance(uint32_t limit)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 32) % limit);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void put32(uint8_t *at, uint32_t value)
{
    value = htonl(value);
    memcpy(at, &value, 4);
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
    return ntohl(value);
}

static void ask(int address, int slot, double time)
{
    struct client *client = &clients[address];
    uint8_t packet[98] = {0};
    size_t size;
    uint32_t action, draw = chance(101);
    if (!client->connected)
        action = 0;
    else if (warm)
        action = draw < 50 ? 0 : draw < 100 ? 1 : 2;
    else
        action = 1;
    if (++transactions == 0)
        ++transactions;
    memcpy(packet, client->id, 8);
    put32(packet + 8, action);
    put32(packet + 12, transactions);
    if (action == 0) {
        static const uint8_t magic[8] = {0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80};
        memcpy(packet, magic, 8);
        size = 16;
    } else {
        uint32_t mine = (count_of_peers - (uint32_t)address + ADDRESSES - 1) / ADDRESSES;
        uint32_t place = warm ? chance(mine) : client->next++ % mine;
        const struct peer *peer = &peers[place * ADDRESSES + (uint32_t)address];
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
    client->waiting[slot] = transactions;
    client->asked[slot] = time;
    if (send(client->descriptor, packet, size, MSG_DONTWAIT) < 0)
        client->asked[slot] = time - RETRY_SECONDS;
}

static void hear(int address, double time)
{
    struct client *client = &clients[address];
    uint8_t packet[2048];
    ssize_t size;
    while ((size = recv(client->descriptor, packet, sizeof packet, MSG_DONTWAIT)) >= 8) {
        uint32_t action = get32(packet), transaction = get32(packet + 4);
        if (action > 2)
            continue;
        for (int slot = 0; slot < WINDOW; ++slot) {
            if (client->waiting[slot] != transaction)
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
            break;
        }
    }
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
    if (peers == NULL || read(file, peers, (size_t)status.st_size) != status.st_size)
        return 1;
    if (count_of_peers < ADDRESSES)
        return 2;
    int poll = epoll_create1(0);
    for (int address = 0; address < ADDRESSES; ++address) {
        struct sockaddr_in name = {.sin_family = AF_INET};
        int descriptor = socket(AF_INET, SOCK_DGRAM, 0);
        name.sin_addr.s_addr = htonl(0x7f000100u + (uint32_t)address);
        if (descriptor < 0 || bind(descriptor, (struct sockaddr *)&name, sizeof name) < 0)
            return 1;
        name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        name.sin_port = htons((uint16_t)port);
        if (connect(descriptor, (struct sockaddr *)&name, sizeof name) < 0)
            return 1;
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)address};
        epoll_ctl(poll, EPOLL_CTL_ADD, descriptor, &event);
        clients[address].descriptor = descriptor;
    }
    warm_left = count_of_peers;
    double start = now(), swept = start;
    for (int address = 0; address < ADDRESSES; ++address)
        for (int slot = 0; slot < WINDOW; ++slot)
            ask(address, slot, start);
    for (;;) {
        struct epoll_event events[ADDRESSES];
        int ready = epoll_wait(poll, events, ADDRESSES, 50);
        double time = now();
        for (int index = 0; index < ready; ++index)
            hear((int)events[index].data.u32, time);
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
            for (int address = 0; address < ADDRESSES; ++address)
                for (int slot = 0; slot < WINDOW; ++slot)
                    if (time - clients[address].asked[slot] > RETRY_SECONDS) {
                        ++lost;
                        ask(address, slot, time);
                    }
        }
    }
    printf("%f %llu %llu %llu %llu\n", now() - start, (unsigned long long)answers[0],
           (unsigned long long)answers[1], (unsigned long long)answers[2],
           (unsigned long long)lost);
    return 0;
}
