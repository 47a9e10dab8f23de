/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A load of HTTP tracker clients on loopback, for bench/tracker_http.py, which describes it.
 *
 *     http_load PORT PEERS-FILE SECONDS CONNECTIONS REQUESTS
 *
 * CONNECTIONS are open at any time, from 256 addresses 127.0.1.x; each is used for REQUESTS requests,
 * one after the other, and replaced then. First every peer of the file announces once; then "warm" is
 * printed, requests are chosen by weight, and after SECONDS one line: seconds, answers to announces,
 * to scrapes, answers that are none, connections that failed, and CPU seconds that this took.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
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
#define MAX_CONNECTIONS 1024
#define MAX_SECONDS 120
#define ANSWER_BYTES 16384
#define TIMEOUT_SECONDS 5

struct peer {
    uint8_t info_hash[20];
    uint16_t port;
    uint8_t seed, padding;
};

struct client {
    int descriptor;
    int requests;       /* that were answered on this connection */
    int scrape;         /* what is asked is one */
    int sent;
    size_t request_size, answer_size;
    double began;
    char request[640];
    char answer[ANSWER_BYTES + 1];
};

static struct peer *peers;
static uint32_t count_of_peers, next_peer;
static struct client clients[MAX_CONNECTIONS];
static uint64_t announces, scrapes, wrong, failed;
static uint32_t warm_left;
static int port, poll_descriptor, requests_each, warm;
static double time_now;

/* Write the next request; peers announce from the address that they have in the file. */
static uint32_t write_request(struct client *client, int last)
{
    static const char digits[] = "0123456789ABCDEF";
    uint32_t place = warm ? chance(count_of_peers) : next_peer++ % count_of_peers;
    const struct peer *peer = &peers[place];
    char hash[61], *at = hash;
    for (int index = 0; index < 20; ++index) {
        *at++ = '%';
        *at++ = digits[peer->info_hash[index] >> 4];
        *at++ = digits[peer->info_hash[index] & 15];
    }
    *at = '\0';
    client->scrape = warm && chance(51) == 0;
    const char *close = last ? "Connection: close\r\n" : "";
    int size = client->scrape
        ? snprintf(client->request, sizeof client->request,
                   "GET /scrape?info_hash=%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                   "User-Agent: load\r\nAccept-Encoding: gzip\r\n%s\r\n", hash, port, close)
        : snprintf(client->request, sizeof client->request,
                   "GET /announce?info_hash=%s&peer_id=-XX0001-%012u&port=%d&uploaded=0"
                   "&downloaded=0&left=%d&numwant=30&compact=1 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                   "User-Agent: load\r\nAccept-Encoding: gzip\r\n%s\r\n",
                   hash, place, peer->port, peer->seed ? 0 : 1, port, close);
    client->request_size = (size_t)size;
    client->answer_size = 0;
    client->sent = 0;
    return place;
}

static void try_to_send(struct client *client)
{
    if (!client->sent)
        client->sent = send(client->descriptor, client->request, client->request_size,
                            MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)client->request_size;
}

static void open_connection(struct client *client)
{
    client->descriptor = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    client->requests = 0;
    client->began = time_now;
    uint32_t place = write_request(client, requests_each == 1);
    struct sockaddr_in name = {.sin_family = AF_INET};
    int one = 1;
    /* The kernel then needs to find a port that is free for this destination only. */
    setsockopt(client->descriptor, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    name.sin_addr.s_addr = htonl(0x7f000100u + place % ADDRESSES);
    if (client->descriptor < 0
        || bind(client->descriptor, (struct sockaddr *)&name, sizeof name) < 0) {
        perror("http_load");
        exit(1);
    }
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    name.sin_port = htons((uint16_t)port);
    if (connect(client->descriptor, (struct sockaddr *)&name, sizeof name) < 0
        && errno != EINPROGRESS) {
        perror("http_load");
        exit(1);
    }
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = (uint32_t)(client - clients),
    };
    epoll_ctl(poll_descriptor, EPOLL_CTL_ADD, client->descriptor, &event);
    try_to_send(client); /* over loopback it is connected by now */
}

static void close_connection(struct client *client)
{
    close(client->descriptor);
    open_connection(client);
}

/* Whether an answer is complete: 1, 0 not yet, -1 it is none. */
static int complete(struct client *client)
{
    client->answer[client->answer_size] = '\0';
    char *end = strstr(client->answer, "\r\n\r\n");
    if (end == NULL)
        return client->answer_size == ANSWER_BYTES ? -1 : 0;
    char *length = strcasestr(client->answer, "\r\nContent-Length:");
    if (length == NULL || length > end)
        return -1;
    size_t body = (size_t)(end + 4 - client->answer);
    size_t size = (size_t)strtoul(length + 17, NULL, 10);
    if (body + size > ANSWER_BYTES)
        return -1;
    if (client->answer_size < body + size)
        return 0;
    const char *wanted = client->scrape ? "d5:files" : "d8:complete";
    return strncmp(client->answer + 9, "200", 3) == 0
        && strncmp(client->answer + body, wanted, strlen(wanted)) == 0 ? 1 : -1;
}

static void hear(struct client *client)
{
    for (;;) {
        try_to_send(client);
        ssize_t size = recv(client->descriptor, client->answer + client->answer_size,
                            ANSWER_BYTES - client->answer_size, MSG_DONTWAIT);
        if (size < 0 && errno == EAGAIN)
            return;
        if (size <= 0) {
            ++failed;
            close_connection(client);
            return;
        }
        client->answer_size += (size_t)size;
        int answered = complete(client);
        if (answered == 0)
            continue;
        if (answered < 0)
            ++wrong;
        else if (!warm)
            warm_left -= warm_left > 0;
        else if (client->scrape)
            ++scrapes;
        else
            ++announces;
        if (answered < 0 || ++client->requests == requests_each) {
            close_connection(client);
            return;
        }
        client->began = time_now;
        write_request(client, client->requests + 1 == requests_each);
    }
}

int main(int count, char **arguments)
{
    if (count != 6)
        return 2;
    port = atoi(arguments[1]);
    int seconds = atoi(arguments[3]), connections = atoi(arguments[4]);
    requests_each = atoi(arguments[5]);
    if (seconds < 1 || seconds > MAX_SECONDS || connections < 1 || connections > MAX_CONNECTIONS
        || requests_each < 1)
        return 2;
    int file = open(arguments[2], O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status) < 0)
        return 1;
    count_of_peers = (uint32_t)((size_t)status.st_size / sizeof *peers);
    peers = malloc((size_t)status.st_size);
    if (count_of_peers == 0 || peers == NULL
        || read(file, peers, (size_t)status.st_size) != status.st_size)
        return 1;
    poll_descriptor = epoll_create1(0);
    warm_left = count_of_peers;
    double start = time_now = now(), swept = start, cpu_before = 0;
    for (int index = 0; index < connections; ++index)
        open_connection(&clients[index]);
    for (;;) {
        struct epoll_event events[MAX_CONNECTIONS];
        int ready = epoll_wait(poll_descriptor, events, MAX_CONNECTIONS, 50);
        time_now = now();
        for (int index = 0; index < ready; ++index)
            hear(&clients[events[index].data.u32]);
        if (!warm && warm_left == 0) {
            warm = 1;
            start = time_now;
            wrong = failed = 0;
            cpu_before = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
            printf("warm\n");
            fflush(stdout);
        }
        if (warm && time_now - start >= seconds)
            break;
        if (!warm && time_now - start >= MAX_SECONDS)
            return 1;
        if (time_now - swept > 1) {
            swept = time_now;
            for (int index = 0; index < connections; ++index)
                if (time_now - clients[index].began > TIMEOUT_SECONDS) {
                    ++failed;
                    close_connection(&clients[index]);
                }
        }
    }
    printf("%f %llu %llu %llu %llu %f\n", now() - start, (unsigned long long)announces,
           (unsigned long long)scrapes, (unsigned long long)wrong, (unsigned long long)failed,
           seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_before);
    return 0;
}
