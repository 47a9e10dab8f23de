/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The HTTP front; http.h.
 *
 * Most connections never wait: what was accepted has its request there already (TCP_DEFER_ACCEPT),
 * is answered and closed with five calls of the system. Only one that has to wait for something is
 * registered with epoll (edge-triggered), stands in a list by what it waits for, in which the oldest
 * is the first to be too late, and counts for its address.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "http.h"

#include "siphash.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 256
#define ACCEPTS 64         /* connections taken from a listener before others have a turn */
#define ROUNDS 8           /* looks at one connection before others have a turn */
#define HEAD_ROOM 256      /* the head of a reply */
#define OUT_BYTES (2 * (HTTP_MAX_BODY + HEAD_ROOM))
#define DRAIN_MS 2000      /* for a client to read a last reply, while it still sends */
#define PAUSE_MS 100       /* no connections are accepted for so long without descriptors */
#define STOP_MS 3000       /* to send what is being sent, when it is told to stop */
#define RECEIVE_BYTES (1 << 20)
#define SOURCE_BUCKETS 4096
#define SOURCE_KEY 20      /* an address of 16 bytes, its length, and zeros */

/* What a connection waits for. */
enum waiting { IDLE, HEAD, WRITE, DRAIN, WAITINGS, GONE = WAITINGS };

#define NOT_A_CONNECTION 0xffffff00u /* listeners begin here, in the lower half of an event's data */
#define WAKE 0xffffffffu

struct connection {
    struct connection *older, *newer;             /* of those that wait for the same; or free ones */
    struct connection *source_older, *source_newer; /* of those of one address */
    struct source *source;                        /* none: a proxy's, or it never waited */
    uint64_t deadline;                            /* milliseconds */
    uint8_t *out;                                 /* the rest of a reply */
    size_t out_size, out_sent;
    size_t seen;                                  /* bytes of an incomplete head that were read */
    uint32_t generation;                          /* tells it from later ones in its place */
    int descriptor;
    uint8_t listener;
    uint8_t waiting;                              /* enum waiting; GONE: for nothing yet */
    bool registered, closing, fresh;              /* fresh: something was answered just now */
    bool served, wide;                            /* something was answered; see widen() */
    uint8_t address[16], address_bytes;
};

/* An address with connections that wait. */
struct source {
    struct source *next;
    struct connection *oldest, *newest;
    uint32_t count;
    uint8_t key[SOURCE_KEY];
};

struct list {
    struct connection *oldest, *newest;
};

struct http_front {
    struct swarms *swarms;
    struct http_limits limits;
    struct http_listener listeners[HTTP_MAX_LISTENERS];
    size_t listener_count;
    int epoll, wake;
    struct connection *connections, *free;
    struct list lists[WAITINGS];
    struct source *sources[SOURCE_BUCKETS];
    struct siphash_key key;
    struct http_proxies *proxies;
    _Atomic(struct http_proxies *) next_proxies;
    _Atomic bool stopping;
    bool ending;            /* replies say that the connection closes */
    uint64_t now, paused_until;
    int64_t clock;          /* seconds since the epoch */
    char date[40];
    pthread_mutex_t mutex;  /* guards the next four */
    int *back_descriptors;
    uint8_t *back_listeners;
    size_t back_count, back_room;
    bool back_closed;
    _Atomic uint64_t waiting, passed_on, evicted, late, malformed, refused;
    struct http_request request;
    struct http_scratch scratch;
    uint8_t in[HTTP_MAX_HEAD];
    uint8_t out[OUT_BYTES];
};

static uint64_t milliseconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

static void bump(_Atomic uint64_t *number)
{
    atomic_fetch_add_explicit(number, 1, memory_order_relaxed);
}

/* -- connections that wait -------------------------------------------------------------------- */

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

/* Close a connection, if it is still ours, and forget it. */
static void drop(struct http_front *front, struct connection *connection)
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

/* Make room: drop the one that has been silent longest, preferably without having said anything. */
static bool evict(struct http_front *front)
{
    static const enum waiting order[] = {IDLE, DRAIN, HEAD, WRITE};
    for (size_t index = 0; index < WAITINGS; ++index) {
        struct connection *oldest = front->lists[order[index]].oldest;
        if (oldest) {
            bump(&front->evicted);
            drop(front, oldest);
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
        drop(front, source->oldest);
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

static struct connection *new_connection(struct http_front *front, int descriptor, size_t listener,
                                         const struct sockaddr_storage *name)
{
    struct connection *connection = front->free; /* one is, as park() keeps one more than the limit */
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

/* Have a connection wait. */
static void park(struct http_front *front, struct connection *connection, enum waiting waiting,
                 bool again)
{
    if (connection->waiting == GONE) {
        if (atomic_load_explicit(&front->waiting, memory_order_relaxed)
            >= front->limits.connections)
            evict(front);
        if (!enter_source(front, connection)) {
            drop(front, connection);
            return;
        }
    }
    bool rearm = again || !connection->registered
              || (waiting == WRITE && connection->waiting != WRITE);
    if (connection->waiting != waiting || connection->fresh)
        enter_list(front, connection, waiting);
    connection->fresh = false;
    if (rearm && !watch(front, connection, waiting))
        drop(front, connection);
}

/* -- replies ---------------------------------------------------------------------------------- */

static size_t put_head(const struct http_front *front, uint8_t *out, const char *status,
                       size_t body_bytes, const char *connection)
{
    int size = snprintf((char *)out, HEAD_ROOM,
                        "HTTP/1.1 %s\r\n%sContent-Type: text/plain\r\nContent-Length: %zu\r\n"
                        "Cache-Control: no-store\r\n%s\r\n",
                        status, front->date, body_bytes, connection);
    return (size_t)size;
}

/* Answer an announce or a scrape; `out` has HEAD_ROOM + HTTP_MAX_BODY bytes. Returns how many. */
static size_t put_reply(struct http_front *front, const struct connection *connection,
                        const struct http_request *request, bool closing, uint8_t *out)
{
    uint8_t address[16];
    size_t address_bytes = http_client_address(
        front->proxies, connection->address, connection->address_bytes,
        request->forwarded ? request->forwarded_for : NULL, request->forwarded_size, address);
    uint8_t *body = out + HEAD_ROOM;
    size_t bytes = http_answer(front->swarms, &front->scratch, request->scrape, request->query,
                               request->query_size, address, address_bytes, front->clock, body);
    size_t head = put_head(front, out, "200 OK", bytes,
                           closing        ? "Connection: close\r\n"
                           : request->old ? "Connection: keep-alive\r\n"
                                          : "");
    if (request->head)
        return head;
    memmove(out + head, body, bytes);
    return head + bytes;
}

/* An error after which the connection closes. */
static size_t put_error(const struct http_front *front, const char *status, uint8_t *out)
{
    size_t bytes = strlen(status);
    size_t head = put_head(front, out, status, bytes + 1, "Connection: close\r\n");
    memcpy(out + head, status, bytes);
    out[head + bytes] = '\n';
    return head + bytes + 1;
}

/* -- one connection --------------------------------------------------------------------------- */

static enum waiting end_connection(struct connection *connection, bool unread)
{
    uint8_t byte;
    if (!unread && connection->registered)
        unread = recv(connection->descriptor, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
    if (!unread)
        return GONE;
    /* To close now would reset the connection, and the reply could be lost with it. */
    shutdown(connection->descriptor, SHUT_WR);
    return DRAIN;
}

static enum waiting drain(struct http_front *front, const struct connection *connection)
{
    for (int round = 0; round < ROUNDS; ++round) {
        ssize_t size = recv(connection->descriptor, front->in, sizeof front->in, MSG_DONTWAIT);
        if (size == 0 || (size < 0 && errno != EAGAIN))
            return GONE;
        if (size < 0)
            return DRAIN;
    }
    return GONE; /* it isn't listening */
}

/* Send what is left of a reply; WRITE when it isn't all gone, GONE when it never will be, and IDLE
 * when it is. */
static enum waiting flush(struct connection *connection)
{
    while (connection->out_sent < connection->out_size) {
        ssize_t sent = send(connection->descriptor, connection->out + connection->out_sent,
                            connection->out_size - connection->out_sent,
                            MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN ? WRITE : GONE;
        connection->out_sent += (size_t)sent;
    }
    free(connection->out);
    connection->out = NULL;
    connection->out_size = connection->out_sent = 0;
    return IDLE;
}

/* Send the first `size` bytes of `front->out`, and keep what can't be sent now; as flush(). */
static enum waiting send_out(struct http_front *front, struct connection *connection, size_t size)
{
    ssize_t sent = send(connection->descriptor, front->out, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        return GONE;
    size_t done = sent < 0 ? 0 : (size_t)sent;
    if (done == size)
        return IDLE;
    connection->out = malloc(size - done);
    if (connection->out == NULL)
        return GONE;
    memcpy(connection->out, front->out + done, size - done);
    connection->out_size = size - done;
    connection->out_sent = 0;
    return WRITE;
}

/* Take bytes that were looked at. */
static bool take(struct http_front *front, const struct connection *connection, size_t size)
{
    return recv(connection->descriptor, front->in, size, MSG_DONTWAIT) == (ssize_t)size;
}

/* Let the kernel take more. A rest that is only looked at can be the end of a large piece, most of
 * which was answered; until all of it is taken it fills the kernel's buffer as a whole, and the rest
 * of the rest would have no room. */
static void widen(struct connection *connection)
{
    int bytes = RECEIVE_BYTES;
    if (!connection->wide)
        setsockopt(connection->descriptor, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    connection->wide = true;
}

/* Hand a connection over to gunicorn; false when it has too many. */
static bool pass_on(struct http_front *front, struct connection *connection)
{
    int descriptor = connection->descriptor;
    if (connection->registered)
        epoll_ctl(front->epoll, EPOLL_CTL_DEL, descriptor, NULL);
    connection->registered = false;
    if (front->ending
        || write(front->listeners[connection->listener].pipe, &descriptor, sizeof descriptor)
               != sizeof descriptor)
        return false;
    connection->descriptor = -1;
    bump(&front->passed_on);
    return true;
}

/* Look at what a connection sent, and answer it. Returns what it waits for then, or GONE. */
static enum waiting progress(struct http_front *front, struct connection *connection, bool *again)
{
    if (connection->waiting == DRAIN)
        return drain(front, connection);
    for (int round = 0; round < ROUNDS; ++round) {
        if (connection->out != NULL) {
            enum waiting rest = flush(connection);
            if (rest != IDLE)
                return rest;
            if (connection->closing)
                return end_connection(connection, false);
        }
        ssize_t received = recv(connection->descriptor, front->in, sizeof front->in,
                                MSG_PEEK | MSG_DONTWAIT);
        if (received <= 0) {
            if (received < 0 && errno == EAGAIN)
                return connection->seen > 0 ? HEAD : IDLE;
            return GONE;
        }
        size_t there = (size_t)received, taken = 0, size = 0;
        enum http_scanned scanned = HTTP_MORE;
        bool others = false;
        while (taken < there && !connection->closing
               && sizeof front->out - size >= HEAD_ROOM + HTTP_MAX_BODY) {
            size_t length = connection->seen;
            scanned = http_scan(front->in + taken, there - taken, &length);
            connection->seen = length;
            if (scanned != HTTP_WHOLE)
                break;
            connection->seen = 0;
            others = !http_read(front->in + taken, length, &front->request);
            if (others)
                break;
            connection->closing = front->ending || !front->request.keep_alive;
            size += put_reply(front, connection, &front->request, connection->closing,
                              front->out + size);
            taken += length;
            connection->fresh = connection->served = true;
        }
        if (others && size == 0) {
            if (pass_on(front, connection))
                return GONE;
            bump(&front->refused);
            size = put_error(front, "503 Service Unavailable", front->out);
            connection->closing = true;
        } else if (!others && !connection->closing
                   && (scanned == HTTP_MALFORMED
                       || (scanned == HTTP_MORE && there - taken == sizeof front->in))) {
            bump(&front->malformed);
            size += put_error(front,
                              scanned == HTTP_MALFORMED ? "400 Bad Request"
                                                        : "431 Request Header Fields Too Large",
                              front->out + size);
            connection->closing = true;
        }
        if (taken > 0 && !take(front, connection, taken))
            return GONE;
        if (size > 0) {
            enum waiting rest = send_out(front, connection, size);
            if (rest != IDLE)
                return rest;
            if (connection->closing)
                return end_connection(connection, there > taken);
        }
        if (connection->served && there > taken)
            widen(connection);
        /* Whatever comes after what was looked at makes epoll say so. */
        if (!others && scanned != HTTP_WHOLE && there < sizeof front->in)
            return HEAD;
        if (!others && taken == there && there < sizeof front->in)
            return IDLE;
    }
    *again = true;
    return connection->seen > 0 ? HEAD : IDLE;
}

static void turn(struct http_front *front, struct connection *connection, bool hung_up)
{
    bool again = false;
    enum waiting waiting = progress(front, connection, &again);
    if (hung_up && !again && (waiting == IDLE || waiting == HEAD)) {
        /* Who won't send any more won't complete a request; but what it said is taken, so that the
         * connection isn't reset before the client has read what it was answered. */
        drain(front, connection);
        waiting = GONE;
    }
    if (waiting == GONE)
        drop(front, connection);
    else
        park(front, connection, waiting, again);
}

/* -- the loop --------------------------------------------------------------------------------- */

static void watch_listeners(struct http_front *front, int operation, uint32_t events)
{
    for (size_t index = 0; index < front->listener_count; ++index) {
        struct epoll_event event = {.events = events, .data.u64 = NOT_A_CONNECTION + index};
        epoll_ctl(front->epoll, operation, front->listeners[index].socket, &event);
    }
}

/* Take connections from a listener, at most so many. */
static void accept_some(struct http_front *front, size_t listener, int limit)
{
    bool evicted = false;
    while (limit-- > 0) {
        struct sockaddr_storage name;
        socklen_t size = sizeof name;
        int descriptor = accept4(front->listeners[listener].socket,
                                 (struct sockaddr *)(void *)&name, &size,
                                 SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (descriptor >= 0) {
            turn(front, new_connection(front, descriptor, listener, &name), false);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            if (!evicted && evict(front)) {
                evicted = true;
                continue;
            }
            watch_listeners(front, EPOLL_CTL_MOD, 0);
            front->paused_until = front->now + PAUSE_MS;
            return;
        } else if (errno == EAGAIN || errno == EINVAL || errno == EBADF) {
            return;
        } /* others are about one connection that is lost already */
    }
}

/* Take what was given back. */
static void take_back(struct http_front *front)
{
    for (;;) {
        pthread_mutex_lock(&front->mutex);
        bool any = front->back_count > 0;
        int descriptor = -1;
        size_t listener = 0;
        if (any) {
            descriptor = front->back_descriptors[--front->back_count];
            listener = front->back_listeners[front->back_count];
        }
        pthread_mutex_unlock(&front->mutex);
        if (!any)
            return;
        struct sockaddr_storage name;
        socklen_t size = sizeof name;
        if (getpeername(descriptor, (struct sockaddr *)(void *)&name, &size) < 0)
            close(descriptor);
        else
            turn(front, new_connection(front, descriptor, listener, &name), false);
    }
}

static void end_late_ones(struct http_front *front)
{
    for (int waiting = 0; waiting < WAITINGS; ++waiting) {
        struct connection *oldest;
        while ((oldest = front->lists[waiting].oldest) && oldest->deadline <= front->now) {
            if (waiting != IDLE && waiting != DRAIN)
                bump(&front->late);
            drop(front, oldest);
        }
    }
}

/* How long to wait for events, in milliseconds; -1: for ever. */
static int patience(const struct http_front *front, uint64_t until)
{
    for (int waiting = 0; waiting < WAITINGS; ++waiting) {
        const struct connection *oldest = front->lists[waiting].oldest;
        if (oldest && oldest->deadline < until)
            until = oldest->deadline;
    }
    if (front->paused_until != 0 && front->paused_until < until)
        until = front->paused_until;
    if (until == UINT64_MAX)
        return -1;
    return until <= front->now ? 0 : (int)(until - front->now);
}

static void tell_time(struct http_front *front)
{
    front->now = milliseconds();
    int64_t clock = (int64_t)time(NULL);
    if (clock == front->clock)
        return;
    front->clock = clock;
    struct tm parts;
    time_t seconds = (time_t)clock;
    gmtime_r(&seconds, &parts);
    static const char days[] = "SunMonTueWedThuFriSat";
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    /* RFC 9110: always in English, whatever the locale. */
    snprintf(front->date, sizeof front->date, "Date: %.3s, %02d %.3s %04d %02d:%02d:%02d GMT\r\n",
             days + 3 * parts.tm_wday, parts.tm_mday % 100, months + 3 * parts.tm_mon,
             (1900 + parts.tm_year) % 10000, parts.tm_hour, parts.tm_min, parts.tm_sec);
}

/* Wait for events and deal with them. */
static int serve_once(struct http_front *front, uint64_t until)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(front->epoll, events, EVENTS, patience(front, until));
    if (count < 0 && errno != EINTR)
        return errno;
    tell_time(front);
    struct http_proxies *proxies = atomic_exchange(&front->next_proxies, NULL);
    if (proxies) {
        free(front->proxies);
        front->proxies = proxies;
    }
    for (int index = 0; index < count; ++index) {
        uint32_t place = (uint32_t)events[index].data.u64;
        if (place == WAKE) {
            uint64_t times;
            if (read(front->wake, &times, sizeof times) == sizeof times)
                take_back(front);
        } else if (place >= NOT_A_CONNECTION) {
            accept_some(front, place - NOT_A_CONNECTION, ACCEPTS);
        } else {
            struct connection *connection = &front->connections[place];
            if (connection->generation == events[index].data.u64 >> 32)
                turn(front, connection,
                     (events[index].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
        }
    }
    end_late_ones(front);
    if (front->paused_until != 0 && front->paused_until <= front->now && !front->ending) {
        front->paused_until = 0;
        watch_listeners(front, EPOLL_CTL_MOD, EPOLLIN);
    }
    return 0;
}

/* Answer what is complete, and send what is being sent. */
static void finish(struct http_front *front)
{
    front->ending = true;
    front->paused_until = 0;
    for (size_t index = 0; index < front->listener_count; ++index)
        accept_some(front, index, (int)front->limits.connections);
    watch_listeners(front, EPOLL_CTL_DEL, 0);
    for (enum waiting waiting = IDLE; waiting <= HEAD; ++waiting) {
        struct connection *connection, *last = front->lists[waiting].newest;
        bool more = last != NULL;
        while (more && (connection = front->lists[waiting].oldest)) {
            more = connection != last;
            turn(front, connection, true);
        }
    }
    uint64_t until = milliseconds() + STOP_MS;
    while ((front->lists[WRITE].oldest || front->lists[DRAIN].oldest) && front->now < until)
        if (serve_once(front, until) != 0)
            break;
}

int http_front_run(struct http_front *front)
{
    sigset_t all, before;
    sigfillset(&all);
    /* Signals are for the threads of Python. */
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int error = 0;
    while (error == 0 && !atomic_load(&front->stopping))
        error = serve_once(front, UINT64_MAX);
    if (error == 0)
        finish(front);
    for (int waiting = 0; waiting < WAITINGS; ++waiting)
        while (front->lists[waiting].oldest)
            drop(front, front->lists[waiting].oldest);
    pthread_mutex_lock(&front->mutex);
    front->back_closed = true;
    while (front->back_count > 0)
        close(front->back_descriptors[--front->back_count]);
    pthread_mutex_unlock(&front->mutex);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

void http_front_stop(struct http_front *front)
{
    atomic_store(&front->stopping, true);
    int error = errno;
    uint64_t one = 1;
    if (write(front->wake, &one, sizeof one) < 0) {
        /* It is full of reasons to wake up already. */
    }
    errno = error;
}

bool http_front_give_back(struct http_front *front, int descriptor, size_t listener)
{
    if (listener >= front->listener_count || atomic_load(&front->stopping))
        return false;
    pthread_mutex_lock(&front->mutex);
    bool taken = !front->back_closed && front->back_count < front->back_room;
    if (taken) {
        front->back_descriptors[front->back_count] = descriptor;
        front->back_listeners[front->back_count++] = (uint8_t)listener;
    }
    pthread_mutex_unlock(&front->mutex);
    uint64_t one = 1;
    if (taken && write(front->wake, &one, sizeof one) < 0) {
        /* As above. */
    }
    return taken;
}

bool http_front_set_proxies(struct http_front *front, const struct swarms_network *networks,
                            size_t count)
{
    struct http_proxies *proxies = malloc(sizeof *proxies + count * sizeof *networks);
    if (proxies == NULL)
        return false;
    proxies->count = count;
    if (count > 0)
        memcpy(proxies->networks, networks, count * sizeof *networks);
    free(atomic_exchange(&front->next_proxies, proxies));
    return true;
}

struct http_numbers http_front_numbers(struct http_front *front)
{
    return (struct http_numbers){
        .waiting = atomic_load(&front->waiting),
        .passed_on = atomic_load(&front->passed_on),
        .evicted = atomic_load(&front->evicted),
        .late = atomic_load(&front->late),
        .malformed = atomic_load(&front->malformed),
        .refused = atomic_load(&front->refused),
    };
}

struct http_front *http_front_new(struct swarms *swarms, const struct http_listener *listeners,
                                  size_t count, const struct http_limits *limits)
{
    if (count > HTTP_MAX_LISTENERS || limits->connections == 0
        || limits->connections >= NOT_A_CONNECTION || limits->per_address == 0) {
        errno = EINVAL;
        return NULL;
    }
    struct http_front *front = calloc(1, sizeof *front);
    if (front == NULL)
        return NULL;
    front->swarms = swarms;
    front->limits = *limits;
    front->listener_count = count;
    front->clock = -1;
    memcpy(front->listeners, listeners, count * sizeof *listeners);
    pthread_mutex_init(&front->mutex, NULL);
    front->epoll = epoll_create1(EPOLL_CLOEXEC);
    front->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    front->back_room = limits->connections;
    front->back_descriptors = calloc(front->back_room, sizeof *front->back_descriptors);
    front->back_listeners = calloc(front->back_room, sizeof *front->back_listeners);
    size_t places = (size_t)limits->connections + 1;
    front->connections = calloc(places, sizeof *front->connections);
    struct epoll_event wake = {.events = EPOLLIN, .data.u64 = WAKE};
    if (front->epoll < 0 || front->wake < 0 || front->back_descriptors == NULL
        || front->back_listeners == NULL || front->connections == NULL
        || getrandom(&front->key, sizeof front->key, 0) != sizeof front->key
        || epoll_ctl(front->epoll, EPOLL_CTL_ADD, front->wake, &wake) < 0) {
        int error = errno;
        http_front_free(front);
        errno = error;
        return NULL;
    }
    for (size_t place = places; place-- > 0;) {
        front->connections[place].newer = front->free;
        front->connections[place].waiting = GONE;
        front->free = &front->connections[place];
    }
    tell_time(front);
    watch_listeners(front, EPOLL_CTL_ADD, EPOLLIN);
    return front;
}

void http_front_free(struct http_front *front)
{
    if (front == NULL)
        return;
    while (front->back_count > 0)
        close(front->back_descriptors[--front->back_count]);
    if (front->epoll >= 0)
        close(front->epoll);
    if (front->wake >= 0)
        close(front->wake);
    free(front->back_descriptors);
    free(front->back_listeners);
    free(front->connections);
    free(front->proxies);
    free(atomic_load(&front->next_proxies));
    pthread_mutex_destroy(&front->mutex);
    free(front);
}
