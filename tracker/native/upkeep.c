/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What a tracker does with its swarms now and then, as methods of `tracker._native.Swarms`: it forgets
 * who fell silent, keeps numbers of downloads elsewhere, and says how many requests there were.
 */
#include "binding.h"

#include <stdlib.h>
#include <string.h>

PyObject *upkeep_expire(PyObject *self, PyObject *arguments)
{
    long long now;
    Py_ssize_t budget;
    if (!PyArg_ParseTuple(arguments, "Ln", &now, &budget))
        return NULL;
    uint64_t expired = 0;
    bool finished;
    Py_BEGIN_ALLOW_THREADS
    finished = swarms_expire(swarms_in(self), now, budget < 1 ? 1 : (size_t)budget, &expired);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("(KN)", (unsigned long long)expired, PyBool_FromLong(finished));
}

PyObject *upkeep_restore(PyObject *self, PyObject *arguments)
{
    const char *info_hash;
    Py_ssize_t size;
    unsigned int downloaded;
    if (!PyArg_ParseTuple(arguments, "y#I", &info_hash, &size, &downloaded))
        return NULL;
    if (size != SWARMS_HASH_BYTES) {
        PyErr_SetString(PyExc_ValueError, "info_hash: has not 20 bytes");
        return NULL;
    }
    swarms_restore(swarms_in(self), (const uint8_t *)info_hash, downloaded);
    Py_RETURN_NONE;
}

/* Numbers that were handed out, before the interpreter sees them: it isn't called with the swarms
 * locked. */
struct taken {
    struct {
        uint8_t info_hash[SWARMS_HASH_BYTES];
        uint32_t downloaded;
    } *items;
    size_t count, capacity;
    bool well;
};

static void take(void *context, const uint8_t *info_hash, uint32_t downloaded)
{
    struct taken *taken = context;
    if (taken->count == taken->capacity) {
        size_t capacity = taken->capacity ? taken->capacity * 2 : 64;
        void *moved = realloc(taken->items, capacity * sizeof *taken->items);
        if (moved == NULL) {
            taken->well = false;
            return;
        }
        taken->items = moved;
        taken->capacity = capacity;
    }
    memcpy(taken->items[taken->count].info_hash, info_hash, SWARMS_HASH_BYTES);
    taken->items[taken->count++].downloaded = downloaded;
}

PyObject *upkeep_take_downloads(PyObject *self, PyObject *Py_UNUSED(unused))
{
    struct taken taken = {.well = true};
    Py_BEGIN_ALLOW_THREADS
    swarms_take_downloads(swarms_in(self), take, &taken);
    Py_END_ALLOW_THREADS
    PyObject *result = taken.well ? PyDict_New() : PyErr_NoMemory();
    for (size_t index = 0; result != NULL && index < taken.count; ++index) {
        PyObject *key = PyBytes_FromStringAndSize((const char *)taken.items[index].info_hash,
                                                  SWARMS_HASH_BYTES);
        PyObject *value = PyLong_FromUnsignedLong(taken.items[index].downloaded);
        if (key == NULL || value == NULL || PyDict_SetItem(result, key, value) < 0)
            Py_CLEAR(result);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    free(taken.items);
    return result;
}

/* Add a new reference to a list; false with an exception set. */
static bool append(PyObject *list, PyObject *item)
{
    bool well = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return well;
}

static bool add_latency(PyObject *list, const struct swarms_numbers *read, int protocol, int action)
{
    PyObject *buckets = PyList_New(0);
    uint64_t observed = 0;
    bool well = buckets != NULL;
    for (int bucket = 0; well && bucket < SWARMS_BUCKETS; ++bucket) {
        uint64_t count = read->latency[protocol][action][bucket];
        observed += count;
        well = append(buckets, PyLong_FromUnsignedLongLong(count));
    }
    if (well && observed)
        return append(list, Py_BuildValue("(iiNd)", protocol, action, buckets,
                                          (double)read->nanoseconds[protocol][action] / 1e9));
    Py_XDECREF(buckets);
    return well;
}

PyObject *upkeep_numbers(PyObject *self, PyObject *Py_UNUSED(unused))
{
    struct swarms_numbers read;
    swarms_read_numbers(swarms_in(self), &read);
    PyObject *requests = PyList_New(0), *latency = PyList_New(0);
    bool well = requests != NULL && latency != NULL;
    for (int protocol = 0; protocol < SWARMS_PROTOCOLS; ++protocol)
        for (int action = 0; action < SWARMS_ACTIONS; ++action) {
            for (int family = 0; family < SWARMS_FAMILIES; ++family)
                for (int outcome = 0; outcome < SWARMS_OUTCOMES; ++outcome) {
                    uint64_t count = read.requests[protocol][family][action][outcome];
                    if (well && count)
                        well = append(requests,
                                      Py_BuildValue("(iiiiK)", protocol, family, action, outcome,
                                                    (unsigned long long)count));
                }
            well = well && add_latency(latency, &read, protocol, action);
        }
    if (well)
        return Py_BuildValue("(NN)", requests, latency);
    Py_XDECREF(requests);
    Py_XDECREF(latency);
    return NULL;
}
