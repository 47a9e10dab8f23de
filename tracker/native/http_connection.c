/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * One connection: what was sent on it is looked at, answered, or left for others.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "http_private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define ROUNDS 8                 /* looks at one connection before others have a turn */
#define RECEIVE_BYTES (1 << 20)

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
    /* The end of the connection follows at once, and goes along in the last packet. */
    int more = connection->closing ? MSG_MORE : 0;
    ssize_t sent =
        send(connection->descriptor, front->out, size, MSG_DONTWAIT | MSG_NOSIGNAL | more);
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

/* Let the kernel take more. What is only looked at can be the end of a large piece, most of which
 * was answered. Until all of that piece is taken it fills the kernel's buffer as a whole, and there
 * would be no room for the rest of the head. */
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

void http_turn(struct http_front *front, struct connection *connection, bool hung_up)
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
        http_drop(front, connection);
    else
        http_park(front, connection, waiting, again);
}
