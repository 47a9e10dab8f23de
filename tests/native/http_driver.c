/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Feeds the HTTP front with requests by chance, for test_http_sanitized.py, which builds it with the
 * compiler's sanitizers.
 *
 *     http_driver SEED ROUNDS
 *
 * Each round is a connection over which a few requests, whole, cut, changed or repeated, are sent in
 * parts; what is passed on is read, and closed or given back. Prints how many replies began.
 */
#define _GNU_SOURCE
#include "http.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static uint64_t state;

static uint32_t chance(uint32_t limit)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 32) % limit);
}

static const char *const pieces[] = {
    "GET /announce?info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=pppppppppppppppppppp&port=1 HTTP/1.1\r\n\r\n",
    "GET /announce?info_hash=%61aaaaaaaaaaaaaaaaaaa&peer_id=pppppppppppppppppppp&port=65535"
    "&left=18446744073709551615&numwant=-1&compact=0&event=completed HTTP/1.1\r\nA: b\r\n\r\n",
    "GET /scrape?info_hash=aaaaaaaaaaaaaaaaaaaa&info_hash=bbbbbbbbbbbbbbbbbbbb HTTP/1.0\r\n"
    "Connection: keep-alive\r\nX-Forwarded-For: 192.0.2.1, 2001:db8::1%x, ::ffff:1.2.3.4\r\n\r\n",
    "HEAD /scrape HTTP/1.1\r\nX-Forwarded-For:\r\nx-forwarded-for: ,,\r\nConnection: , close\r\n\r\n",
    "GET /announce?%&&=&info_hash=%&port=%3 HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "PUT /v1/nar/x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    "\r\n", "\n", "\r", "%", "&", ":", " ", "\t",
};
#define PIECES (sizeof pieces / sizeof *pieces)

static void *run(void *front)
{
    return http_front_run(front) == 0 ? front : NULL;
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    state = strtoull(arguments[1], NULL, 10) * 2654435761u + 88172645463325252ull;
    long rounds = strtol(arguments[2], NULL, 10);
    const struct swarms_policy policy = {1800, 90, 50, 200, 5};
    const struct swarms_limits limits = {100, 1000, 50, 32, 4500, 1200};
    uint8_t seed[SWARMS_SEED_BYTES] = {1};
    struct swarms *swarms = swarms_new(seed, true, false, &policy, &limits);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), ends[2];
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof name;
    if (swarms == NULL || bind(listener, (struct sockaddr *)&name, sizeof name) < 0
        || listen(listener, 100) < 0
        || getsockname(listener, (struct sockaddr *)&name, &size) < 0
        || pipe2(ends, O_NONBLOCK) < 0)
        return 1;
    const struct http_listener where = {listener, ends[1]};
    const struct http_limits bounds = {20, 15, 40, 40, 40};
    struct http_front *front = http_front_new(swarms, &where, 1, &bounds);
    pthread_t thread;
    if (front == NULL || pthread_create(&thread, NULL, run, front) != 0)
        return 1;
    int held[30];
    size_t holding = 0;
    long replies = 0;
    for (long round = 0; round < rounds; ++round) {
        if (round % 50 == 0) {
            struct swarms_network network = {.address = {127}, .address_bytes = 4};
            network.prefix = (uint8_t)chance(33);
            if (!http_front_set_proxies(front, &network, chance(2)))
                return 1;
        }
        char request[70000];
        size_t length = 0;
        for (uint32_t parts = 1 + chance(4); parts > 0; --parts) {
            const char *piece = pieces[chance(PIECES)];
            size_t bytes = strlen(piece);
            if (chance(20) == 0) {
                bytes = chance(20000);
                memset(request + length, 'a' + (int)chance(26), bytes);
            } else {
                if (chance(4) == 0)
                    bytes = chance((uint32_t)bytes + 1);
                memcpy(request + length, piece, bytes);
            }
            length += bytes;
        }
        for (uint32_t changes = chance(3); changes > 0 && length > 0; --changes)
            request[chance((uint32_t)length)] = (char)chance(256);
        int client = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(client, (struct sockaddr *)&name, sizeof name) < 0)
            return 1;
        for (size_t sent = 0; sent < length;) {
            size_t part = chance(2) ? length - sent : 1 + chance((uint32_t)(length - sent));
            if (send(client, request + sent, part, MSG_NOSIGNAL) < 0)
                break;
            sent += part;
        }
        struct pollfd answer = {.fd = client, .events = POLLIN};
        if (poll(&answer, 1, (int)chance(3)) > 0) {
            char text[9];
            replies += recv(client, text, sizeof text, MSG_DONTWAIT) == sizeof text;
        }
        if (chance(3) == 0 && holding < sizeof held / sizeof *held)
            held[holding++] = client;
        else
            close(client);
        if (holding > 0 && chance(8) == 0)
            close(held[--holding]);
        int passed;
        while (read(ends[0], &passed, sizeof passed) == sizeof passed) {
            char text[100];
            if (recv(passed, text, sizeof text, MSG_DONTWAIT) <= 0 || chance(2)
                || !http_front_give_back(front, passed, 0))
                close(passed);
        }
    }
    http_front_stop(front);
    void *well;
    pthread_join(thread, &well);
    int passed;
    while (read(ends[0], &passed, sizeof passed) == sizeof passed)
        close(passed);
    while (holding > 0)
        close(held[--holding]);
    http_front_free(front);
    swarms_free(swarms);
    close(listener);
    close(ends[0]);
    close(ends[1]);
    printf("%ld\n", replies);
    return well == NULL;
}
