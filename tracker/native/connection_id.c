/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A byte of time and 7 bytes of keyed BLAKE2s (RFC 7693) over time and address. The key fills a
 * block of its own, which is hashed once; an id costs one more.
 */
#include "connection_id.h"

#include <string.h>

#define SLOT_SECONDS 60
#define MAC_BYTES 7
#define BLOCK_BYTES 64

static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static const uint8_t sigma[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static inline uint32_t rotate(uint32_t word, int by)
{
    return word >> by | word << (32 - by);
}

static inline void mix(uint32_t v[16], int a, int b, int c, int d, uint32_t x, uint32_t y)
{
    v[a] += v[b] + x;
    v[d] = rotate(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = rotate(v[b] ^ v[c], 12);
    v[a] += v[b] + y;
    v[d] = rotate(v[d] ^ v[a], 8);
    v[c] += v[d];
    v[b] = rotate(v[b] ^ v[c], 7);
}

/* Hash one block; `total` bytes were hashed with it. */
static void compress(uint32_t state[8], const uint8_t block[BLOCK_BYTES], uint32_t total, bool last)
{
    uint32_t v[16], words[16];
    for (int index = 0; index < 16; ++index) {
        const uint8_t *at = block + 4 * index;
        words[index] = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
                       (uint32_t)at[3] << 24;
    }
    memcpy(v, state, 8 * sizeof *v);
    memcpy(v + 8, start, sizeof start);
    v[12] ^= total;
    if (last)
        v[14] = ~v[14];
    for (int round = 0; round < 10; ++round) {
        const uint8_t *s = sigma[round];
        mix(v, 0, 4, 8, 12, words[s[0]], words[s[1]]);
        mix(v, 1, 5, 9, 13, words[s[2]], words[s[3]]);
        mix(v, 2, 6, 10, 14, words[s[4]], words[s[5]]);
        mix(v, 3, 7, 11, 15, words[s[6]], words[s[7]]);
        mix(v, 0, 5, 10, 15, words[s[8]], words[s[9]]);
        mix(v, 1, 6, 11, 12, words[s[10]], words[s[11]]);
        mix(v, 2, 7, 8, 13, words[s[12]], words[s[13]]);
        mix(v, 3, 4, 9, 14, words[s[14]], words[s[15]]);
    }
    for (int index = 0; index < 8; ++index)
        state[index] ^= v[index] ^ v[index + 8];
}

void connection_ids_init(struct connection_ids *ids, const uint8_t key[CONNECTION_KEY_BYTES])
{
    uint8_t block[BLOCK_BYTES] = {0};
    memcpy(block, key, CONNECTION_KEY_BYTES);
    memcpy(ids->state, start, sizeof start);
    ids->state[0] ^= 0x01010000u | CONNECTION_KEY_BYTES << 8 | MAC_BYTES;
    compress(ids->state, block, BLOCK_BYTES, false);
}

static int64_t slot_of(int64_t now)
{
    return now / SLOT_SECONDS - (now % SLOT_SECONDS < 0);
}

static void make(const struct connection_ids *ids, const uint8_t *address, size_t address_bytes,
                 int64_t slot, uint8_t id[CONNECTION_ID_BYTES])
{
    /* A host has several addresses in its IPv6 network, and clients use one id with all of them. */
    size_t network = address_bytes == 4 ? 4 : 8;
    uint8_t block[BLOCK_BYTES] = {0};
    uint32_t state[8];
    for (int index = 0; index < 8; ++index)
        block[index] = (uint8_t)((uint64_t)slot >> (56 - 8 * index));
    memcpy(block + 8, address, network);
    memcpy(state, ids->state, sizeof state);
    compress(state, block, (uint32_t)(BLOCK_BYTES + 8 + network), true);
    id[0] = (uint8_t)slot;
    for (int index = 0; index < MAC_BYTES; ++index)
        id[1 + index] = (uint8_t)(state[index / 4] >> 8 * (index % 4));
}

void connection_id_issue(const struct connection_ids *ids, const uint8_t *address,
                         size_t address_bytes, int64_t now, uint8_t id[CONNECTION_ID_BYTES])
{
    make(ids, address, address_bytes, slot_of(now), id);
}

bool connection_id_holds(const struct connection_ids *ids, const uint8_t *address,
                         size_t address_bytes, int64_t now, const uint8_t id[CONNECTION_ID_BYTES])
{
    int64_t slot = slot_of(now);
    uint8_t age = (uint8_t)(slot - id[0]), made[CONNECTION_ID_BYTES];
    /* One of the next minute is from a host whose clock is ahead. */
    if (age > 2 && age != 255)
        return false;
    make(ids, address, address_bytes, age == 255 ? slot + 1 : slot - age, made);
    uint8_t different = 0;
    for (int index = 0; index < CONNECTION_ID_BYTES; ++index)
        different |= (uint8_t)(id[index] ^ made[index]);
    return different == 0;
}
