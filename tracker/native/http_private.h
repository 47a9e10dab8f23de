/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the files of the HTTP front share: its connections, and what they wait for.
 */
#ifndef NARSWARM_HTTP_PRIVATE_H
#define NARSWARM_HTTP_PRIVATE_H

#include "http.h"
#include "siphash.h"

#include <stdatomic.h>
#include <pthread.h>
#include <sys/socket.h>

#define HEAD_ROOM 256      /* the head of a reply */
#define OUT_BYTES (2 * (HTTP_MAX_BODY + HEAD_ROOM))
#define DRAIN_MS 2000      /* for a client to read a last reply, while it still sends */
#define SOURCE_BUCKETS 4096
#define SOURCE_KEY 20      /* an address of 16 bytes, its length, and zeros */

/* What a connection waits for. */
enum waiting { IDLE, HEAD, WRITE, DRAIN, WAITINGS, GONE = WAITINGS };

struct connection {
    struct connection *older, *newer;             /* of those that wait for the same; free ones */
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

static inline void bump(_Atomic uint64_t *number)
{
    atomic_fetch_add_explicit(number, 1, memory_order_relaxed);
}

/* -- http_waiting.c --------------------------------------------------------------------------- */

/* Take up a connection that was accepted, or came back; http_turn is to be called next. */
struct connection *http_new_connection(struct http_front *front, int descriptor, size_t listener,
                                       const struct sockaddr_storage *name);

/* Have a connection wait. again: it is looked at again at once. */
void http_park(struct http_front *front, struct connection *connection, enum waiting waiting,
               bool again);

/* Close a connection, if it is still ours, and forget it. */
void http_drop(struct http_front *front, struct connection *connection);

/* Make room: drop the one that has been silent longest, preferably without having said anything.
 * False when none waits. */
bool http_evict(struct http_front *front);

/* -- http_connection.c ------------------------------------------------------------------------ */

/* Look at what a connection sent, answer it, and have it wait for more, or end it.
 * hung_up: the client said that nothing more will come. */
void http_turn(struct http_front *front, struct connection *connection, bool hung_up);

#endif
