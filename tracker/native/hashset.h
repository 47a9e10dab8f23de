/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Sets of infohashes, at 27 to 40 bytes for each.
 *
 * A set is many small tables with open addressing, one for each value of some bits of the hash. Each
 * grows by itself, so that no addition takes a time that grows with the set as a whole. Nothing here
 * locks.
 */
#ifndef NARSWARM_HASHSET_H
#define NARSWARM_HASHSET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "siphash.h"

#define HASHSET_BYTES 20
#define HASHSET_SHARDS 1024

struct hashset_shard {
    uint8_t *slots; /* of 20 bytes; all zero is an empty one */
    uint32_t capacity, count;
};

struct hashset {
    struct siphash_key key;
    uint64_t count;
    bool has_zero; /* the infohash that is all zero */
    struct hashset_shard shards[HASHSET_SHARDS];
};

/* An empty set, or NULL without memory. */
struct hashset *hashset_new(const struct siphash_key *key);
/* A set of what stands one after the other, or NULL without memory. */
struct hashset *hashset_of(const struct siphash_key *key, const uint8_t *hashes, size_t count);
void hashset_free(struct hashset *set);

bool hashset_has(const struct hashset *set, const uint8_t *hash);
/* Add one; false without memory. */
bool hashset_add(struct hashset *set, const uint8_t *hash);
void hashset_remove(struct hashset *set, const uint8_t *hash);
/* Call a function with each. */
void hashset_each(const struct hashset *set, void (*each)(void *context, const uint8_t *hash),
                  void *context);

#endif
