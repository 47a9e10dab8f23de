/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the load generators share: numbers by chance that are the same in each run, clocks, and the
 * byte order of the wire.
 */
#ifndef NARSWARM_BENCH_LOAD_H
#define NARSWARM_BENCH_LOAD_H

#include <arpa/inet.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

/* A number below LIMIT (xorshift64). */
static inline uint32_t chance(uint32_t limit)
{
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 32) * limit >> 32);
}

/* Seconds by a clock. */
static inline double seconds_of(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static inline double now(void)
{
    return seconds_of(CLOCK_MONOTONIC);
}

static inline void put32(uint8_t *at, uint32_t value)
{
    value = htonl(value);
    memcpy(at, &value, 4);
}

static inline uint32_t get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
    return ntohl(value);
}

#endif
