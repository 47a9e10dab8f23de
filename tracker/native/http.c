/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The HTTP front; http.h.
 *
 * Most connections never wait: what was accepted has its request there already (TCP_DEFER_ACCEPT),
 * is answered and closed with five calls of the system. Only one that has to wait for something is
 * registered with epoll (edge-triggered), stands in a list (http_waiting.c) and counts for its
 * address.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "http_private.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 256
#define ACCEPTS 64         /* connections taken from a listener before others have a turn */
#define PAUSE_MS 100       /* no connections are accepted for so long without descriptors */
#define STOP_MS 3000       /* to send what is being sent, when it is told to stop */
/* Where listeners begin in the lower half of an event's data. */
#define NOT_A_CONNECTION 0xffffff00u
#define WAKE 0xffffffffu

static uint64_t milliseconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

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
            http_turn(front, http_new_connection(front, descriptor, listener, &name), false);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            if (!evicted && http_evict(front)) {
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
            http_turn(front, http_new_connection(front, descriptor, listener, &name), false);
    }
}

static void end_late_ones(struct http_front *front)
{
    for (int waiting = 0; waiting < WAITINGS; ++waiting) {
        struct connection *oldest;
        while ((oldest = front->lists[waiting].oldest) && oldest->deadline <= front->now) {
            if (waiting != IDLE && waiting != DRAIN)
                bump(&front->late);
            http_drop(front, oldest);
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
                http_turn(front, connection,
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
            http_turn(front, connection, true);
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
            http_drop(front, front->lists[waiting].oldest);
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
