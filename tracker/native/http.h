/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The HTTP front: accepts connections, answers announces and scrapes, and passes all others on.
 *
 * One thread runs http_front_run. It looks at what a connection sends without taking it (MSG_PEEK)
 * until a request's head is complete. Announces and scrapes are answered from the swarms, without
 * the interpreter. A connection with any other request is written, as the number of its descriptor,
 * to a pipe from which gunicorn takes it as if it had accepted it. So nobody holds a thread of
 * Python who hasn't sent a whole head, however slowly.
 */
#ifndef NARSWARM_HTTP_H
#define NARSWARM_HTTP_H

#include "http_wire.h"

#define HTTP_MAX_LISTENERS 64

/* What bounds time and memory. */
struct http_limits {
    uint32_t connections; /* that wait for something, of everybody */
    uint32_t per_address; /* and of one IPv4 address or one /64 of IPv6; proxies may have all */
    uint32_t head_ms;     /* from a request's first byte to the end of its head */
    uint32_t idle_ms;     /* between two requests */
    uint32_t write_ms;    /* until a client has taken what is sent */
};

/* Where it listens, and where it writes connections from there that are others' to answer. */
struct http_listener {
    int socket;
    int pipe; /* takes an int each */
};

/* What it did so far. */
struct http_numbers {
    uint64_t waiting;   /* connections now */
    uint64_t passed_on; /* connections, to gunicorn */
    uint64_t evicted;   /* connections that made room for others */
    uint64_t late;      /* that took too long */
    uint64_t malformed; /* requests answered with 400 or 431 */
    uint64_t refused;   /* requests answered with 503, as gunicorn has too many already */
};

struct http_front;

/* Make a front; NULL, with errno set, without memory or descriptors. Descriptors stay the caller's;
 * sockets and pipes have to be non-blocking. */
struct http_front *http_front_new(struct swarms *swarms, const struct http_listener *listeners,
                                  size_t count, const struct http_limits *limits);

/* Serve until http_front_stop; returns 0, or an errno. What has a whole head by then is answered,
 * and what is being sent is sent for at most write_ms. */
int http_front_run(struct http_front *front);

/* End http_front_run soon. From any thread, also within a signal handler. */
void http_front_stop(struct http_front *front);

/* Give a connection back of which the next request is awaited; false when it can't be taken, and
 * then the descriptor stays the caller's. From any thread.
 * listener: the place of the listener that it came from. */
bool http_front_give_back(struct http_front *front, int descriptor, size_t listener);

/* From now on believe these proxies; false without memory. From any thread. */
bool http_front_set_proxies(struct http_front *front, const struct swarms_network *networks,
                            size_t count);

struct http_numbers http_front_numbers(struct http_front *front);

/* Only after http_front_run returned, or when it never ran. */
void http_front_free(struct http_front *front);

#endif
