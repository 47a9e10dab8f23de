/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The swarms of the tracker, and all that decides what an announce or a scrape is answered.
 *
 * Peers are packed records in sorted chunks; one mutex guards them together with what the operator
 * decides: the listed infohashes of a closed tracker, blocked infohashes and networks, limits,
 * intervals. So a front end in C (udp.c, http.c) reads a request, calls one function here and writes
 * a reply, without the interpreter. The rules are those of tracker/swarms.py, announcer.py and
 * policy.py, which stay the engine where no C compiler was at hand; tests compare the two.
 *
 * Every function may be called from any thread. Nothing is kept of what callers pass, nothing that
 * is handed out points into the swarms, and no function calls the interpreter or waits for anything
 * but the mutex. Times are seconds since the epoch and come from the caller.
 */
#ifndef NARSWARM_SWARMS_H
#define NARSWARM_SWARMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SWARMS_HASH_BYTES 20      /* an infohash on the wire (BEP 52 cuts SHA-256 to it), a peer id */
#define SWARMS_PEER4_BYTES 6      /* a packed IPv4 peer: address and port (BEP 23) */
#define SWARMS_PEER6_BYTES 18     /* the same for IPv6 (BEP 7) */
#define SWARMS_MAX_SCRAPE 74      /* infohashes that a scrape is answered for (BEP 15) */
#define SWARMS_MAX_WANTED 2000    /* peers in one answer, whatever max_numwant says */
#define SWARMS_SEED_BYTES 48      /* what swarms_new is seeded with: key of the table, and chance */

/* `event` of an announce; the numbers of UDP (BEP 15), and libtorrent's 4 for BEP 21. Any other
 * number is an ordinary announce, which is SWARMS_NONE. */
enum swarms_event {
    SWARMS_NONE = 0,
    SWARMS_COMPLETED = 1,
    SWARMS_STARTED = 2,
    SWARMS_STOPPED = 3,
    SWARMS_PAUSED = 4,
};

/* What becomes of an announce. */
enum swarms_status {
    SWARMS_OK = 0,
    SWARMS_UNLISTED = 1, /* the infohash isn't in the index of a closed tracker */
    SWARMS_BLOCKED = 2,  /* the operator blocked the infohash */
    SWARMS_REFUSED = 3,  /* the operator blocked the address */
};

/* Texts for these, as tracker/announcer.py has them; by enum swarms_status, NULL for SWARMS_OK. */
extern const char *const swarms_reasons[4];

/* An announce. A front end checks what can be wrong on the wire before: here every value is taken,
 * but port 0 makes sense only with SWARMS_STOPPED. */
struct swarms_request {
    uint8_t info_hash[SWARMS_HASH_BYTES];
    uint8_t peer_id[SWARMS_HASH_BYTES];
    uint8_t address[16];   /* where it came from: 4 bytes, or 16. Never IPv4 mapped into IPv6. */
    uint8_t address_bytes; /* 4 or 16 */
    uint8_t event;         /* enum swarms_event */
    bool one_family;       /* peers of the asker's own family only (UDP) */
    bool want_ids;         /* hand out peer ids too (HTTP with compact=0 and not no_peer_id=1) */
    uint16_t port;         /* host byte order */
    int64_t left;          /* bytes that it lacks; negative: not known, which makes a leecher */
    int64_t numwant;       /* negative: not said, so the policy's */
};

/* Counts of one swarm (BEP 48, BEP 21); a stranger's swarm has zeros. */
struct swarms_counts {
    uint32_t complete, incomplete, downloaded, downloaders;
};

/* The answer to an announce. The caller sets `room`, `peers4` and `peers6`, and `ids4` and `ids6`
 * when it wants ids; every buffer must hold `room` entries. Peers of one family stand one after the
 * other in the order in which they were chosen; the entry of `ids4` (20 bytes) belongs to that of
 * `peers4` in the same place. */
struct swarms_answer {
    uint32_t room;             /* in: no more peers than this, of both families together */
    uint8_t *peers4, *peers6;  /* in: room * 6 and room * 18 bytes; one that can't be needed because
                                  of one_family may be NULL */
    uint8_t *ids4, *ids6;      /* in: room * 20 bytes each, or NULL without want_ids */
    uint32_t count4, count6;   /* out: entries written */
    uint32_t interval, min_interval; /* out: seconds */
    struct swarms_counts counts;     /* out: with the asker; after a stop without it */
};

/* What is granted; see tracker/policy.py. */
struct swarms_policy {
    uint32_t interval, leecher_interval; /* seconds */
    uint32_t numwant, max_numwant;
    uint32_t retry_minutes; /* `retry in` of an unlisted infohash over HTTP (BEP 31) */
};

/* What bounds memory; see `Limits` in tracker/swarms.py. */
struct swarms_limits {
    uint64_t swarms, peers;
    uint32_t swarm_peers, address_ports;
    uint32_t seed_timeout, leecher_timeout; /* seconds */
};

/* How many swarms and peers there are. */
struct swarms_totals {
    uint64_t swarms;
    uint64_t peers[4]; /* seeds of IPv4, of IPv6, leechers of IPv4, of IPv6 */
};

struct swarms;

/* -- for front ends --------------------------------------------------------------------------- */

/* Take in one announce: looks at the address, the infohash, the list, then at the swarm, and
 * chooses intervals. With any status but SWARMS_OK nothing in `answer` is written and nothing was
 * kept. */
enum swarms_status swarms_announce(struct swarms *swarms, const struct swarms_request *request,
                                   int64_t now, struct swarms_answer *answer);

/* Whether nothing is answered to an address of 4 or 16 bytes; a front end asks this of whatever
 * isn't an announce, before anything else. */
bool swarms_refuses(struct swarms *swarms, const uint8_t *address, size_t address_bytes);

/* Counts of `count` infohashes, 20 bytes each one after the other; zeros for those that aren't there
 * or are blocked. */
void swarms_scrape(struct swarms *swarms, const uint8_t *info_hashes, size_t count,
                   struct swarms_counts *counts);

/* What is granted as of now; `leecher_interval` is also a scrape's `min_request_interval`. */
struct swarms_policy swarms_get_policy(struct swarms *swarms);

/* A batch of datagrams takes the mutex once: between these two calls, and on this thread only, the
 * functions `..._locked` may be called instead of those without. */
void swarms_lock(struct swarms *swarms);
bool swarms_trylock(struct swarms *swarms); /* whether it was free, and is taken */
void swarms_unlock(struct swarms *swarms);
enum swarms_status swarms_announce_locked(struct swarms *swarms,
                                          const struct swarms_request *request, int64_t now,
                                          struct swarms_answer *answer);
bool swarms_refuses_locked(struct swarms *swarms, const uint8_t *address, size_t address_bytes);
void swarms_scrape_locked(struct swarms *swarms, const uint8_t *info_hashes, size_t count,
                          struct swarms_counts *counts);

/* -- counters: what tracker/metrics.py tells, in the same order ------------------------------- */

enum swarms_protocol { SWARMS_HTTP, SWARMS_UDP, SWARMS_PROTOCOLS };
enum swarms_family { SWARMS_IPV4, SWARMS_IPV6, SWARMS_UNKNOWN, SWARMS_FAMILIES };
enum swarms_action {
    SWARMS_CONNECT, SWARMS_ANNOUNCE, SWARMS_SCRAPE, SWARMS_INDEX, SWARMS_PUBLISH, SWARMS_ACTIONS
};
enum swarms_outcome {
    SWARMS_COUNT_OK, SWARMS_COUNT_MALFORMED, SWARMS_COUNT_UNLISTED, SWARMS_COUNT_BLOCKED,
    SWARMS_COUNT_REFUSED, SWARMS_COUNT_DROPPED, SWARMS_COUNT_FAILED, SWARMS_OUTCOMES
};
#define SWARMS_BUCKETS 12 /* of latency; the upper bounds of all but the last are swarms_bounds */
extern const double swarms_bounds[SWARMS_BUCKETS - 1]; /* seconds */

/* The outcome that a status counts as. */
enum swarms_outcome swarms_outcome_of(enum swarms_status status);

/* Count requests by what became of them, whatever that was. Doesn't take the mutex. */
void swarms_count(struct swarms *swarms, enum swarms_protocol protocol, enum swarms_family family,
                  enum swarms_action action, enum swarms_outcome outcome, uint64_t amount);

/* Note that a reply took so long, `amount` times. Doesn't take the mutex. HTTP notes every request
 * (with whatever outcome), UDP those that are answered with what was asked for. */
void swarms_observe(struct swarms *swarms, enum swarms_protocol protocol,
                    enum swarms_action action, double seconds, uint64_t amount);

struct swarms_numbers {
    uint64_t requests[SWARMS_PROTOCOLS][SWARMS_FAMILIES][SWARMS_ACTIONS][SWARMS_OUTCOMES];
    uint64_t latency[SWARMS_PROTOCOLS][SWARMS_ACTIONS][SWARMS_BUCKETS]; /* not cumulative */
    uint64_t nanoseconds[SWARMS_PROTOCOLS][SWARMS_ACTIONS];
};

/* The numbers since the beginning. */
void swarms_read_numbers(struct swarms *swarms, struct swarms_numbers *numbers);

/* -- for the owner (module.c) ----------------------------------------------------------------- */

/* Make empty swarms, or NULL without memory.
 * keep_downloads: remember how often a swarm was downloaded after its last peer left (closed
 * trackers, whose index bounds the number of swarms). open: every infohash is listed. */
struct swarms *swarms_new(const uint8_t seed[SWARMS_SEED_BYTES], bool open, bool keep_downloads,
                          const struct swarms_policy *policy, const struct swarms_limits *limits);
void swarms_free(struct swarms *swarms);

void swarms_set_policy(struct swarms *swarms, const struct swarms_policy *policy);
void swarms_set_limits(struct swarms *swarms, const struct swarms_limits *limits);

/* Replace a set of infohashes, 20 bytes each one after the other; false without memory, and then
 * the set is as it was. It is built before the mutex is taken. */
bool swarms_set_listed(struct swarms *swarms, const uint8_t *info_hashes, size_t count);
bool swarms_set_blocked(struct swarms *swarms, const uint8_t *info_hashes, size_t count);
/* Add to the listed ones, and remove; false without memory for an addition. */
bool swarms_list(struct swarms *swarms, const uint8_t *info_hashes, size_t count);
void swarms_unlist(struct swarms *swarms, const uint8_t *info_hashes, size_t count);

/* A blocked network: the first `prefix` bits of an address of 4 or 16 bytes. */
struct swarms_network {
    uint8_t address[16];
    uint8_t address_bytes, prefix;
};
bool swarms_set_networks(struct swarms *swarms, const struct swarms_network *networks,
                         size_t count);

/* As swarms_announce, but whatever is listed or blocked, and without intervals: for a caller that
 * asked about these already. `numwant` of the request is the number of peers, not negative. */
void swarms_enter_locked(struct swarms *swarms, const struct swarms_request *request, int64_t now,
                         struct swarms_answer *answer);

/* Look at several swarms as if they were one (the two of a hybrid): who is in more than one counts
 * once. Writes at most `limit` peers, seeds first: *packed is allocated with malloc and has
 * *count4 peers of 6 bytes and *count6 of 18, first the seeds' (IPv4, IPv6), then the leechers':
 * counts[0..3] of `parts` say how many of each. False without memory. */
bool swarms_sample(struct swarms *swarms, const uint8_t *info_hashes, size_t count, size_t limit,
                   struct swarms_counts *counts, uint8_t **packed, uint32_t parts[4]);

/* Forget peers that fell silent or are blocked: looks at swarms and peers until `budget` of them are
 * done, and goes on from there the next time. Adds to *expired; returns whether all swarms were
 * looked at. The mutex is held meanwhile, so a small budget keeps pauses short. */
bool swarms_expire(struct swarms *swarms, int64_t now, size_t budget, uint64_t *expired);

struct swarms_totals swarms_get_totals_locked(struct swarms *swarms);

/* Begin with a number of downloads that was kept elsewhere; only with keep_downloads. */
void swarms_restore(struct swarms *swarms, const uint8_t *info_hash, uint32_t downloaded);
/* Hand out the numbers that changed since the last time, or were given back: each is passed to
 * `take`, with the mutex held. Only with keep_downloads. */
void swarms_take_downloads(struct swarms *swarms,
                           void (*take)(void *context, const uint8_t *info_hash,
                                        uint32_t downloaded),
                           void *context);
void swarms_give_back(struct swarms *swarms, const uint8_t *info_hashes, size_t count);

#endif
