/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the operator decides, which announces are asked about before they cost anything, and the
 * counters.
 */
#include <stdlib.h>

#include "swarms_private.h"

const char *const swarms_reasons[4] = {
    NULL,
    "info_hash: is not in this tracker's index",
    "info_hash: is blocked by this tracker's operator",
    "address: is blocked by this tracker's operator",
};

const double swarms_bounds[SWARMS_BUCKETS - 1] = {0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025,
                                                  0.005,   0.01,   0.05,    0.25,   1.0};

struct swarms *swarms_new(const uint8_t seed[SWARMS_SEED_BYTES], bool open, bool keep_downloads,
                          const struct swarms_policy *policy, const struct swarms_limits *limits)
{
    struct swarms *swarms = calloc(1, sizeof *swarms);
    if (swarms == NULL)
        return NULL;
    if (pthread_mutex_init(&swarms->mutex, NULL) != 0) {
        free(swarms);
        return NULL;
    }
    memcpy(&swarms->key, seed, sizeof swarms->key);
    memcpy(swarms->random, seed + sizeof swarms->key, sizeof swarms->random);
    swarms->random[0] |= 1; /* all zero would stay so */
    swarms->open = open;
    swarms->keep_downloads = keep_downloads;
    swarms->policy = *policy;
    swarms->limits = *limits;
    swarms->listed = hashset_new(&swarms->key);
    swarms->blocked = hashset_new(&swarms->key);
    swarms->changed = hashset_new(&swarms->key);
    if (swarms->listed == NULL || swarms->blocked == NULL || swarms->changed == NULL ||
        !table_open(swarms)) {
        swarms_free(swarms);
        return NULL;
    }
    return swarms;
}

static void free_networks(struct decisions *networks)
{
    for (size_t index = 0; index < networks->count; ++index)
        free(networks->kinds[index].prefixes);
    free(networks->kinds);
}

void swarms_free(struct swarms *swarms)
{
    if (swarms == NULL)
        return;
    if (swarms->segments != NULL && swarms->segments[0] != NULL)
        table_close(swarms);
    else
        free(swarms->segments);
    hashset_free(swarms->listed);
    hashset_free(swarms->blocked);
    hashset_free(swarms->changed);
    free_networks(&swarms->networks);
    pthread_mutex_destroy(&swarms->mutex);
    free(swarms);
}

void swarms_lock(struct swarms *swarms)
{
    pthread_mutex_lock(&swarms->mutex);
}

bool swarms_trylock(struct swarms *swarms)
{
    return pthread_mutex_trylock(&swarms->mutex) == 0;
}

void swarms_unlock(struct swarms *swarms)
{
    pthread_mutex_unlock(&swarms->mutex);
}

struct swarms_policy swarms_get_policy(struct swarms *swarms)
{
    swarms_lock(swarms);
    struct swarms_policy policy = swarms->policy;
    swarms_unlock(swarms);
    return policy;
}

void swarms_set_policy(struct swarms *swarms, const struct swarms_policy *policy)
{
    swarms_lock(swarms);
    swarms->policy = *policy;
    swarms_unlock(swarms);
}

void swarms_set_limits(struct swarms *swarms, const struct swarms_limits *limits)
{
    swarms_lock(swarms);
    swarms->limits = *limits;
    swarms_unlock(swarms);
}

/* -- infohashes -------------------------------------------------------------------------------- */

static bool replace(struct swarms *swarms, struct hashset **place, const uint8_t *info_hashes,
                    size_t count)
{
    struct hashset *set = hashset_of(&swarms->key, info_hashes, count);
    if (set == NULL)
        return false;
    swarms_lock(swarms);
    struct hashset *former = *place;
    *place = set;
    swarms_unlock(swarms);
    hashset_free(former);
    return true;
}

bool swarms_set_listed(struct swarms *swarms, const uint8_t *info_hashes, size_t count)
{
    return replace(swarms, &swarms->listed, info_hashes, count);
}

bool swarms_set_blocked(struct swarms *swarms, const uint8_t *info_hashes, size_t count)
{
    return replace(swarms, &swarms->blocked, info_hashes, count);
}

bool swarms_list(struct swarms *swarms, const uint8_t *info_hashes, size_t count)
{
    bool added = true;
    swarms_lock(swarms);
    for (size_t index = 0; added && index < count; ++index)
        added = hashset_add(swarms->listed, info_hashes + index * SWARMS_HASH_BYTES);
    swarms_unlock(swarms);
    return added;
}

void swarms_unlist(struct swarms *swarms, const uint8_t *info_hashes, size_t count)
{
    swarms_lock(swarms);
    for (size_t index = 0; index < count; ++index)
        hashset_remove(swarms->listed, info_hashes + index * SWARMS_HASH_BYTES);
    swarms_unlock(swarms);
}

/* -- networks ---------------------------------------------------------------------------------- */

/* The first bits of an address, the others zero. */
static void mask(uint8_t *to, const uint8_t *address, size_t address_bytes, unsigned prefix)
{
    memset(to, 0, 16);
    size_t whole = prefix / 8;
    memcpy(to, address, whole);
    if (whole < address_bytes && prefix % 8)
        to[whole] = address[whole] & (uint8_t)(0xff00u >> prefix % 8);
}

static int by_kind(const void *left, const void *right)
{
    return memcmp(left, right, 2 + 16);
}

static int by_prefix4(const void *left, const void *right)
{
    return memcmp(left, right, 4);
}

static int by_prefix6(const void *left, const void *right)
{
    return memcmp(left, right, 16);
}

static bool build(struct decisions *built, const struct swarms_network *networks, size_t count)
{
    if (count == 0)
        return true;
    /* Size and length of the prefix before it, so that sorting brings kinds together. */
    uint8_t(*sorted)[18] = malloc(count * sizeof *sorted);
    if (sorted == NULL)
        return false;
    for (size_t index = 0; index < count; ++index) {
        const struct swarms_network *network = &networks[index];
        sorted[index][0] = network->address_bytes;
        sorted[index][1] = network->prefix;
        mask(sorted[index] + 2, network->address, network->address_bytes, network->prefix);
    }
    qsort(sorted, count, sizeof *sorted, by_kind);
    for (size_t first = 0, next; first < count; first = next) {
        for (next = first + 1; next < count && memcmp(sorted[first], sorted[next], 2) == 0; ++next)
            continue;
        struct networks kind = {.count = (uint32_t)(next - first),
                                .address_bytes = sorted[first][0],
                                .prefix = sorted[first][1]};
        kind.prefixes = malloc((next - first) * kind.address_bytes);
        struct networks *kinds =
            kind.prefixes == NULL ? NULL
                                  : realloc(built->kinds, (built->count + 1) * sizeof *kinds);
        if (kinds == NULL) {
            free(kind.prefixes);
            free(sorted);
            return false;
        }
        for (size_t index = first; index < next; ++index)
            memcpy(kind.prefixes + (index - first) * kind.address_bytes, sorted[index] + 2,
                   kind.address_bytes);
        kinds[built->count++] = kind;
        built->kinds = kinds;
    }
    free(sorted);
    return true;
}

bool swarms_set_networks(struct swarms *swarms, const struct swarms_network *networks,
                         size_t count)
{
    struct decisions built = {0};
    if (!build(&built, networks, count)) {
        free_networks(&built);
        return false;
    }
    swarms_lock(swarms);
    struct decisions former = swarms->networks;
    swarms->networks = built;
    swarms_unlock(swarms);
    free_networks(&former);
    return true;
}

bool is_blocked_address(const struct decisions *networks, const uint8_t *address,
                        size_t address_bytes)
{
    for (size_t index = 0; index < networks->count; ++index) {
        const struct networks *kind = &networks->kinds[index];
        uint8_t prefix[16];
        if (kind->address_bytes != address_bytes)
            continue;
        mask(prefix, address, address_bytes, kind->prefix);
        if (bsearch(prefix, kind->prefixes, kind->count, address_bytes,
                    address_bytes == 4 ? by_prefix4 : by_prefix6) != NULL)
            return true;
    }
    return false;
}

bool swarms_refuses_locked(struct swarms *swarms, const uint8_t *address, size_t address_bytes)
{
    return swarms->networks.count && is_blocked_address(&swarms->networks, address, address_bytes);
}

bool swarms_refuses(struct swarms *swarms, const uint8_t *address, size_t address_bytes)
{
    swarms_lock(swarms);
    bool refuses = swarms_refuses_locked(swarms, address, address_bytes);
    swarms_unlock(swarms);
    return refuses;
}

/* -- counters ---------------------------------------------------------------------------------- */

enum swarms_outcome swarms_outcome_of(enum swarms_status status)
{
    switch (status) {
    case SWARMS_UNLISTED:
        return SWARMS_COUNT_UNLISTED;
    case SWARMS_BLOCKED:
        return SWARMS_COUNT_BLOCKED;
    case SWARMS_REFUSED:
        return SWARMS_COUNT_REFUSED;
    case SWARMS_OK:
        break;
    }
    return SWARMS_COUNT_OK;
}

void swarms_count(struct swarms *swarms, enum swarms_protocol protocol, enum swarms_family family,
                  enum swarms_action action, enum swarms_outcome outcome, uint64_t amount)
{
    atomic_fetch_add_explicit(&swarms->requests[protocol][family][action][outcome], amount,
                              memory_order_relaxed);
}

void swarms_observe(struct swarms *swarms, enum swarms_protocol protocol,
                    enum swarms_action action, double seconds, uint64_t amount)
{
    int bucket = 0;
    while (bucket < SWARMS_BUCKETS - 1 && seconds > swarms_bounds[bucket])
        ++bucket;
    atomic_fetch_add_explicit(&swarms->latency[protocol][action][bucket], amount,
                              memory_order_relaxed);
    if (seconds > 0)
        atomic_fetch_add_explicit(&swarms->nanoseconds[protocol][action],
                                  (uint64_t)(seconds * 1e9) * amount, memory_order_relaxed);
}

void swarms_read_numbers(struct swarms *swarms, struct swarms_numbers *numbers)
{
    for (int protocol = 0; protocol < SWARMS_PROTOCOLS; ++protocol)
        for (int action = 0; action < SWARMS_ACTIONS; ++action) {
            for (int family = 0; family < SWARMS_FAMILIES; ++family)
                for (int outcome = 0; outcome < SWARMS_OUTCOMES; ++outcome)
                    numbers->requests[protocol][family][action][outcome] = atomic_load_explicit(
                        &swarms->requests[protocol][family][action][outcome],
                        memory_order_relaxed);
            for (int bucket = 0; bucket < SWARMS_BUCKETS; ++bucket)
                numbers->latency[protocol][action][bucket] = atomic_load_explicit(
                    &swarms->latency[protocol][action][bucket], memory_order_relaxed);
            numbers->nanoseconds[protocol][action] = atomic_load_explicit(
                &swarms->nanoseconds[protocol][action], memory_order_relaxed);
        }
}
