/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * SipHash-1-3 of infohashes: a hash whose collisions nobody can look for without its key, so that
 * nobody can fill one bucket of a table (Aumasson, Bernstein: SipHash, a fast short-input PRF).
 */
#ifndef NARSWARM_SIPHASH_H
#define NARSWARM_SIPHASH_H

#include <stdint.h>
#include <string.h>

struct siphash_key {
    uint64_t low, high;
};

static inline uint64_t siphash_rotate(uint64_t word, int by)
{
    return word << by | word >> (64 - by);
}

static inline void siphash_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = siphash_rotate(v[1], 13) ^ v[0];
    v[3] = siphash_rotate(v[3], 16) ^ v[2];
    v[0] = siphash_rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = siphash_rotate(v[1], 17) ^ v[2];
    v[3] = siphash_rotate(v[3], 21) ^ v[0];
    v[2] = siphash_rotate(v[2], 32);
}

/* The hash of 20 bytes. Words are read in the machine's order: it never leaves the process. */
static inline uint64_t siphash20(const struct siphash_key *key, const uint8_t bytes[20])
{
    uint64_t v[4] = {key->low ^ 0x736f6d6570736575u, key->high ^ 0x646f72616e646f6du,
                     key->low ^ 0x6c7967656e657261u, key->high ^ 0x7465646279746573u};
    uint64_t words[3] = {0, 0, (uint64_t)20 << 56};
    memcpy(words, bytes, 16);
    uint32_t last;
    memcpy(&last, bytes + 16, 4);
    words[2] |= last;
    for (int index = 0; index < 3; ++index) {
        v[3] ^= words[index];
        siphash_round(v);
        v[0] ^= words[index];
    }
    v[2] ^= 0xff;
    siphash_round(v);
    siphash_round(v);
    siphash_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

#endif
