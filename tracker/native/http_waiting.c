/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Connections that wait, in lists by what they wait for; the oldest of each is the first to be too
 * late, and the first to make room. Each counts for its address.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "http_private.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static uint64_t source_key(const struct http_front *front, const struct connection *connection,
                           uint8_t key[SOURCE_KEY])
{
    /* A host has many addresses of IPv6, but seldom more than a network of 64 bits. */
    size_t bytes = connection->address_bytes == 4 ? 4 : 8;
    memset(key, 0, SOURCE_KEY);
    memcpy(key, connection->address, bytes);
    key[16] = connection->address_bytes;
    return siphash20(&front->key, key) % SOURCE_BUCKETS;
}

static void leave_source(struct http_front *front, struct connection *connection)
{
    struct source *source = connection->source;
    if (source == NULL)
        return;
    if (connection->source_older)
        connection->source_older->source_newer = connection->source_newer;
    else
        source->oldest = connection->source_newer;
    if (connection->source_newer)
        connection->source_newer->source_older = connection->source_older;
    else
        source->newest = connection->source_older;
    connection->source = NULL;
    if (--source->count > 0)
        return;
    uint8_t key[SOURCE_KEY];
    struct source **place = &front->sources[source_key(front, connection, key)];
    while (*place != source)
        place = &(*place)->next;
    *place = source->next;
    free(source);
}

static void leave_list(struct http_front *front, struct connection *connection)
{
    if (connection->waiting == GONE)
        return;
    struct list *list = &front->lists[connection->waiting];
    if (connection->older)
        connection->older->newer = connection->newer;
    else
        list->oldest = connection->newer;
    if (connection->newer)
        connection->newer->older = connection->older;
    else
        list->newest = connection->older;
    connection->waiting = GONE;
    atomic_fetch_sub_explicit(&front->waiting, 1, memory_order_relaxed);
}

static void enter_list(struct http_front *front, struct connection *connection,
                       enum waiting waiting)
{
    const uint64_t lasts[WAITINGS] = {
        front->limits.idle_ms, front->limits.head_ms, front->limits.write_ms, DRAIN_MS,
    };
    leave_list(front, connection);
    struct list *list = &front->lists[waiting];
    connection->waiting = (uint8_t)waiting;
    connection->deadline = front->now + lasts[waiting];
    connection->newer = NULL;
    connection->older = list->newest;
    if (list->newest)
        list->newest->newer = connection;
    else
        list->oldest = connection;
    list->newest = connection;
    atomic_fetch_add_explicit(&front->waiting, 1, memory_order_relaxed);
}

void http_drop(struct http_front *front, struct connection *connection)
{
    leave_source(front, connection);
    leave_list(front, connection);
    if (connection->descriptor >= 0)
        close(connection->descriptor); /* epoll forgets it with this */
    free(connection->out);
    connection->out = NULL;
    ++connection->generation;
    connection->newer = front->free;
    front->free = connection;
}

bool http_evict(struct http_front *front)
{
    static const enum waiting order[] = {IDLE, DRAIN, HEAD, WRITE};
    for (size_t index = 0; index < WAITINGS; ++index) {
        struct connection *oldest = front->lists[order[index]].oldest;
        if (oldest) {
            bump(&front->evicted);
            http_drop(front, oldest);
            return true;
        }
    }
    return false;
}

/* Count a connection for its address; false without memory. */
static bool enter_source(struct http_front *front, struct connection *connection)
{
    if (http_trusts(front->proxies, connection->address, connection->address_bytes))
        return true;
    uint8_t key[SOURCE_KEY];
    uint64_t bucket = source_key(front, connection, key);
    struct source *source = front->sources[bucket];
    while (source && memcmp(source->key, key, sizeof key) != 0)
        source = source->next;
    if (source && source->count >= front->limits.per_address) {
        bump(&front->evicted);
        bool last = source->count == 1;
        http_drop(front, source->oldest);
        source = last ? NULL : source;
    }
    if (source == NULL) {
        source = calloc(1, sizeof *source);
        if (source == NULL)
            return false;
        memcpy(source->key, key, sizeof key);
        source->next = front->sources[bucket];
        front->sources[bucket] = source;
    }
    connection->source = source;
    connection->source_newer = NULL;
    connection->source_older = source->newest;
    if (source->newest)
        source->newest->source_newer = connection;
    else
        source->oldest = connection;
    source->newest = connection;
    ++source->count;
    return true;
}

struct connection *http_new_connection(struct http_front *front, int descriptor, size_t listener,
                                         const struct sockaddr_storage *name)
{
    /* There is one: as many as may wait, and one more. */
    struct connection *connection = front->free;
    front->free = connection->newer;
    uint32_t generation = connection->generation;
    *connection = (struct connection){
        .generation = generation,
        .descriptor = descriptor,
        .listener = (uint8_t)listener,
        .waiting = GONE,
    };
    size_t bytes = 0;
    if (name->ss_family == AF_INET6)
        bytes = http_normal_address(
            (const uint8_t *)&((const struct sockaddr_in6 *)(const void *)name)->sin6_addr, 16,
            connection->address);
    else if (name->ss_family == AF_INET)
        bytes = http_normal_address(
            (const uint8_t *)&((const struct sockaddr_in *)(const void *)name)->sin_addr, 4,
            connection->address);
    connection->address_bytes = (uint8_t)bytes;
    return connection;
}

/* Have epoll watch a connection, or look at it again at once. */
static bool watch(struct http_front *front, struct connection *connection, enum waiting waiting)
{
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLRDHUP | EPOLLET | (waiting == WRITE ? EPOLLOUT : 0u),
        .data.u64 = (uint64_t)connection->generation << 32
                  | (uint64_t)(connection - front->connections),
    };
    int operation = connection->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    connection->registered = true;
    return epoll_ctl(front->epoll, operation, connection->descriptor, &event) == 0;
}

void http_park(struct http_front *front, struct connection *connection, enum waiting waiting,
                 bool again)
{
    if (connection->waiting == GONE) {
        if (atomic_load_explicit(&front->waiting, memory_order_relaxed)
            >= front->limits.connections)
            http_evict(front);
        if (!enter_source(front, connection)) {
            http_drop(front, connection);
            return;
        }
    }
    bool rearm = again || !connection->registered
              || (waiting == WRITE && connection->waiting != WRITE);
    if (connection->waiting != waiting || connection->fresh)
        enter_list(front, connection, waiting);
    connection->fresh = false;
    if (rearm && !watch(front, connection, waiting))
        http_drop(front, connection);
}
