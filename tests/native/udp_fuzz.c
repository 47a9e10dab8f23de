/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Random datagrams, and everything else that can happen to the swarms, for the sanitizers.
 *
 *     udp_fuzz SEED ROUNDS
 *
 * First ROUNDS steps one after the other, of which all can be repeated with the seed; then threads
 * that do the same at once, with sockets, to the same swarms. Prints "ok" when all is as it must be.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "udp.h"

#define HASHES 12
#define THREADS 3

static const uint8_t key[CONNECTION_KEY_BYTES] = "a key that isn't a secret at all";

struct fuzz {
    struct swarms *swarms;
    struct connection_ids ids;
    uint64_t state;
    int64_t now;
    uint64_t answers;
};

static uint32_t chance(struct fuzz *fuzz, uint32_t limit)
{
    uint64_t word = fuzz->state += 0x9e3779b97f4a7c15u;
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9u;
    word = (word ^ word >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((word ^ word >> 31) >> 32) % limit;
}

static void fill(struct fuzz *fuzz, uint8_t *to, size_t size)
{
    for (size_t index = 0; index < size; ++index)
        to[index] = (uint8_t)chance(fuzz, 256);
}

static size_t pick_address(struct fuzz *fuzz, uint8_t address[16])
{
    static const uint8_t network[16] = {0x20, 0x01, 0x0d, 0xb8};
    memcpy(address, network, 16);
    address[7] = (uint8_t)chance(fuzz, 4);
    address[15] = (uint8_t)chance(fuzz, 30);
    if (chance(fuzz, 2))
        return 16;
    address[3] = (uint8_t)chance(fuzz, 200);
    return 4;
}

static void pick_hash(struct fuzz *fuzz, uint8_t *hash)
{
    memset(hash, (int)chance(fuzz, HASHES), SWARMS_HASH_BYTES);
    if (chance(fuzz, 10) == 0)
        fill(fuzz, hash, SWARMS_HASH_BYTES);
}

/* A datagram of any kind: mostly one that gets far. */
static size_t make_packet(struct fuzz *fuzz, uint8_t *packet, const uint8_t *address,
                          size_t address_bytes)
{
    fill(fuzz, packet, 16);
    size_t size = 16;
    uint32_t action = chance(fuzz, 8);
    memcpy(packet + 8, (uint8_t[]){0, 0, 0, action > 4 ? 1 : (uint8_t)action}, 4);
    if (action == 0 && chance(fuzz, 10))
        memcpy(packet, (uint8_t[]){0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80}, 8);
    else if (chance(fuzz, 20))
        connection_id_issue(&fuzz->ids, address, address_bytes,
                            fuzz->now - (int64_t)chance(fuzz, 130), packet);
    if (action == 2) {
        for (uint32_t left = chance(fuzz, 100); left; --left, size += SWARMS_HASH_BYTES)
            pick_hash(fuzz, packet + size);
    } else if (action) {
        fill(fuzz, packet + 16, 98 - 16 + 64);
        pick_hash(fuzz, packet + 16);
        if (chance(fuzz, 2))
            memset(packet + 64, 0, 8); /* a seed */
        memcpy(packet + 80, (uint8_t[]){0, 0, 0, (uint8_t)chance(fuzz, 6)}, 4);
        packet[96] = 0;
        packet[97] = (uint8_t)chance(fuzz, 40);
        size = 98 + chance(fuzz, 64);
    }
    if (chance(fuzz, 10) == 0)
        size = chance(fuzz, (uint32_t)size + 1);
    return size;
}

static void datagram(struct fuzz *fuzz)
{
    uint8_t address[16], reply[UDP_MAX_REPLY];
    size_t address_bytes = pick_address(fuzz, address);
    struct udp_tally tally = {0};
    uint8_t made[UDP_MAX_REQUEST];
    size_t size = make_packet(fuzz, made, address, address_bytes);
    /* Exactly as large as it is, so that a byte too far is seen. */
    uint8_t *packet = malloc(size ? size : 1);
    assert(packet != NULL);
    memcpy(packet, made, size);
    swarms_lock(fuzz->swarms);
    size_t written = udp_respond(fuzz->swarms, &fuzz->ids, packet, size, address, address_bytes,
                                 fuzz->now, reply, &tally);
    swarms_unlock(fuzz->swarms);
    udp_count(fuzz->swarms, &tally, 0.001 * chance(fuzz, 2000));
    assert(written <= (address_bytes == 4 ? 1472u : 1452u));
    assert(written == 0 || memcmp(reply + 4, packet + 12, 4) == 0);
    fuzz->answers += written > 0;
    free(packet);
}

static void ignore(void *context, const uint8_t *info_hash, uint32_t downloaded)
{
    (void)info_hash;
    *(uint64_t *)context += downloaded;
}

static void look(struct fuzz *fuzz)
{
    uint8_t hashes[3 * SWARMS_HASH_BYTES], *packed;
    uint32_t parts[4];
    struct swarms_counts counts;
    for (int index = 0; index < 3; ++index)
        pick_hash(fuzz, hashes + index * SWARMS_HASH_BYTES);
    size_t limit = chance(fuzz, 500);
    assert(swarms_sample(fuzz->swarms, hashes, 1 + chance(fuzz, 3), limit, &counts, &packed, parts));
    size_t named = (size_t)parts[0] + parts[1] + parts[2] + parts[3];
    size_t all = (size_t)counts.complete + counts.incomplete;
    assert(named == (all < limit ? all : limit));
    free(packed);
}

static void decide(struct fuzz *fuzz)
{
    uint8_t hashes[HASHES * SWARMS_HASH_BYTES];
    struct swarms_network networks[4] = {0};
    size_t count = chance(fuzz, HASHES + 1);
    for (size_t index = 0; index < HASHES; ++index)
        pick_hash(fuzz, hashes + index * SWARMS_HASH_BYTES);
    switch (chance(fuzz, 6)) {
    case 0:
        assert(swarms_set_listed(fuzz->swarms, hashes, count));
        break;
    case 1:
        assert(swarms_set_blocked(fuzz->swarms, hashes, count / 4));
        break;
    case 2:
        for (size_t index = 0; index < 4; ++index) {
            networks[index].address_bytes = (uint8_t)pick_address(fuzz, networks[index].address);
            networks[index].prefix =
                (uint8_t)(networks[index].address_bytes * 8 - chance(fuzz, 5));
        }
        assert(swarms_set_networks(fuzz->swarms, networks, chance(fuzz, 5)));
        break;
    case 3:
        swarms_unlist(fuzz->swarms, hashes, count);
        break;
    case 4:
        swarms_restore(fuzz->swarms, hashes, chance(fuzz, 9));
        break;
    default:
        assert(swarms_list(fuzz->swarms, hashes, count));
    }
}

static void step(struct fuzz *fuzz)
{
    uint32_t what = chance(fuzz, 200);
    uint64_t sum = 0;
    if (what == 0)
        (void)swarms_expire(fuzz->swarms, fuzz->now, chance(fuzz, 60), &sum);
    else if (what == 1)
        swarms_take_downloads(fuzz->swarms, ignore, &sum);
    else if (what < 4)
        look(fuzz);
    else if (what < 8)
        decide(fuzz);
    else
        datagram(fuzz);
    fuzz->now += chance(fuzz, 40) == 0;
}

/* The totals are those of all swarms together. */
static void check(struct fuzz *fuzz)
{
    uint8_t hashes[HASHES * SWARMS_HASH_BYTES];
    struct swarms_counts counts[HASHES];
    for (int index = 0; index < HASHES; ++index)
        memset(hashes + index * SWARMS_HASH_BYTES, index, SWARMS_HASH_BYTES);
    assert(swarms_set_blocked(fuzz->swarms, NULL, 0));
    swarms_scrape(fuzz->swarms, hashes, HASHES, counts);
    uint64_t seeds = 0, leechers = 0, expired = 0;
    for (int index = 0; index < HASHES; ++index) {
        assert(counts[index].downloaders <= counts[index].incomplete);
        seeds += counts[index].complete;
        leechers += counts[index].incomplete;
    }
    swarms_lock(fuzz->swarms);
    struct swarms_totals totals = swarms_get_totals_locked(fuzz->swarms);
    swarms_unlock(fuzz->swarms);
    /* Of random infohashes there may be some more. */
    assert(seeds <= totals.peers[0] + totals.peers[1]);
    assert(leechers <= totals.peers[2] + totals.peers[3]);
    /* The first round ends where one before it began. */
    for (int round = 0; round < 2; ++round)
        while (!swarms_expire(fuzz->swarms, fuzz->now + 1000000, 10, &expired))
            continue;
    swarms_lock(fuzz->swarms);
    struct swarms_totals after = swarms_get_totals_locked(fuzz->swarms);
    swarms_unlock(fuzz->swarms);
    assert(expired == totals.peers[0] + totals.peers[1] + totals.peers[2] + totals.peers[3]);
    assert(after.peers[0] + after.peers[1] + after.peers[2] + after.peers[3] == 0);
}

static void *run_steps(void *context)
{
    for (int index = 0; index < 5000; ++index)
        step(context);
    return NULL;
}

static void *run_server(void *context)
{
    assert(udp_serve(context) == 0);
    return NULL;
}

/* Ask a server over a socket until it answers; what it sends back last is for a right question. */
static void converse(struct fuzz *fuzz, int server)
{
    struct sockaddr_in name;
    socklen_t size = sizeof name;
    int client = socket(AF_INET, SOCK_DGRAM, 0);
    assert(getsockname(server, (struct sockaddr *)&name, &size) == 0);
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert(connect(client, (struct sockaddr *)&name, size) == 0);
    const uint8_t address[4] = {127, 0, 0, 1};
    for (int round = 0; round < 500; ++round) {
        uint8_t packet[UDP_MAX_REQUEST];
        (void)!send(client, packet, make_packet(fuzz, packet, address, 4), 0);
        (void)!recv(client, packet, sizeof packet, MSG_DONTWAIT);
    }
    uint8_t right[16] = {0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80, 0, 0, 0, 0, 'l', 'a', 's', 't'};
    uint8_t reply[UDP_MAX_REQUEST];
    const struct timeval patience = {.tv_usec = 100000};
    assert(setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
    /* It may be lost, as all queues may be full. */
    for (int tries = 0; tries < 100; ++tries) {
        assert(send(client, right, sizeof right, 0) == sizeof right);
        ssize_t heard;
        while ((heard = recv(client, reply, sizeof reply, 0)) >= 8)
            if (memcmp(reply + 4, "last", 4) == 0) {
                close(client);
                return;
            }
    }
    assert(!"the server does not answer");
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    const uint8_t seed[SWARMS_SEED_BYTES] = {1, 2, 3};
    const struct swarms_policy policy = {1800, 90, 50, 200, 5};
    const struct swarms_limits limits = {40, 3000, 900, 8, 60, 30};
    struct fuzz fuzz = {.swarms = swarms_new(seed, false, true, &policy, &limits),
                        .state = strtoull(arguments[1], NULL, 10),
                        .now = 1700000000};
    assert(fuzz.swarms != NULL);
    connection_ids_init(&fuzz.ids, key);
    for (unsigned long left = strtoul(arguments[2], NULL, 10); left; --left)
        step(&fuzz);
    assert(fuzz.answers > 0);
    check(&fuzz);

    int descriptor = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET};
    assert(bind(descriptor, (struct sockaddr *)&any, sizeof any) == 0);
    struct udp_server *server = udp_open(fuzz.swarms, key, &descriptor, 1);
    assert(server != NULL);
    pthread_t serving, threads[THREADS];
    struct fuzz others[THREADS];
    assert(pthread_create(&serving, NULL, run_server, server) == 0);
    for (int index = 0; index < THREADS; ++index) {
        others[index] = fuzz;
        others[index].state += (uint64_t)index + 1;
        assert(pthread_create(&threads[index], NULL, run_steps, &others[index]) == 0);
    }
    converse(&fuzz, descriptor);
    for (int index = 0; index < THREADS; ++index)
        pthread_join(threads[index], NULL);
    assert(swarms_set_networks(fuzz.swarms, NULL, 0));
    udp_stop(server);
    pthread_join(serving, NULL);
    udp_close(server);
    close(descriptor);
    fuzz.now += 100;
    check(&fuzz);
    swarms_free(fuzz.swarms);
    puts("ok");
    return 0;
}
