/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A slow, distant link between two network namespaces, for the benchmarks.
 *
 *     link PID-A NAME-A PID-B NAME-B KILOBITS-PER-SECOND DELAY-US QUEUE-BYTES
 *
 * Makes a TAP device in the namespace of each process and carries Ethernet frames between them, in
 * both directions at once and alike: a frame waits for those before it, takes its length divided by
 * the rate, and arrives DELAY-US later. What would wait behind more than QUEUE-BYTES is dropped, as
 * a router's queue does. Prints "ready" when the devices are there, and ends with its parent.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define FRAME 2048
#define PLACES 32768 /* frames on their way in one direction; a power of two */
#define BURST 64

struct frame {
    uint64_t arrives; /* nanoseconds */
    uint32_t length;
    uint8_t bytes[FRAME];
};

struct direction {
    int from, to;
    uint64_t free; /* when the link has sent what came before */
    uint32_t first, after;
    struct frame *frames;
};

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void fail(const char *what)
{
    fprintf(stderr, "link: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int make_device(const char *pid, const char *name)
{
    char path[64];
    struct ifreq request = {0};
    int flag, space, device;
    snprintf(path, sizeof path, "/proc/%s/ns/net", pid);
    space = open(path, O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWNET) < 0)
        fail(path);
    close(space);
    device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (device < 0)
        fail("/dev/net/tun");
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    flag = ioctl(device, TUNSETIFF, &request);
    if (flag < 0)
        fail(name);
    return device;
}

static void take(struct direction *way, double ns_per_byte, uint64_t delay, uint64_t queue)
{
    for (int i = 0; i < BURST; i++) {
        struct frame *frame = &way->frames[way->after % PLACES];
        uint8_t spare[FRAME];
        int full = way->after - way->first == PLACES;
        ssize_t length = read(way->from, full ? spare : frame->bytes, FRAME);
        uint64_t time = now();
        uint64_t begins = way->free > time ? way->free : time;
        if (length <= 0)
            return;
        if (full || (double)(begins - time) > (double)queue * ns_per_byte)
            continue;
        way->free = begins + (uint64_t)((double)length * ns_per_byte);
        frame->arrives = way->free + delay;
        frame->length = (uint32_t)length;
        way->after++;
    }
}

static void deliver(struct direction *way)
{
    uint64_t time = now();
    while (way->first != way->after) {
        struct frame *frame = &way->frames[way->first % PLACES];
        if (frame->arrives > time)
            return;
        /* A device that is down takes nothing: the frame is lost, as on a cut wire. */
        if (write(way->to, frame->bytes, frame->length) < 0 && errno == EAGAIN)
            return;
        way->first++;
    }
}

int main(int count, char **words)
{
    struct direction ways[2] = {0};
    double ns_per_byte;
    uint64_t delay, queue;
    if (count != 8) {
        fputs("usage: link PID-A NAME-A PID-B NAME-B KILOBITS DELAY-US QUEUE-BYTES\n", stderr);
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1000);
    ns_per_byte = 8e6 / strtod(words[5], NULL);
    delay = strtoull(words[6], NULL, 10) * 1000;
    queue = strtoull(words[7], NULL, 10);
    ways[0].from = ways[1].to = make_device(words[1], words[2]);
    ways[0].to = ways[1].from = make_device(words[3], words[4]);
    for (int i = 0; i < 2; i++)
        if (!(ways[i].frames = malloc(PLACES * sizeof(struct frame))))
            fail("memory");
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd polls[2] = {{ways[0].from, POLLIN, 0}, {ways[1].from, POLLIN, 0}};
        struct timespec pause = {1, 0};
        uint64_t time = now(), next = time + 1000000000u;
        for (int i = 0; i < 2; i++)
            if (ways[i].first != ways[i].after) {
                uint64_t arrives = ways[i].frames[ways[i].first % PLACES].arrives;
                next = arrives < next ? arrives : next;
            }
        next = next > time ? next - time : 0;
        pause.tv_sec = (time_t)(next / 1000000000u);
        pause.tv_nsec = (long)(next % 1000000000u);
        if (ppoll(polls, 2, &pause, NULL) < 0 && errno != EINTR)
            fail("poll");
        for (int i = 0; i < 2; i++) {
            deliver(&ways[i]);
            take(&ways[i], ns_per_byte, delay, queue);
        }
    }
}
