/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * `tracker._native`: the module, and the swarms as Python sees them. tracker/native.py gives the
 * values names, and tracker/_native.pyi their types.
 *
 * What is short is done with the interpreter's lock held, unless another thread has the swarms: to
 * let go of it and get it back may take longer than the work. Nobody waits for the interpreter while
 * it has the swarms, so the two locks can't wait for each other.
 */
#include "binding.h"

#include <stdlib.h>
#include <string.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

static PyTypeObject *swarms_type;

struct swarms_object {
    PyObject_HEAD
    struct swarms *swarms;
};

struct swarms *swarms_of(PyObject *object)
{
    if (!PyObject_TypeCheck(object, swarms_type)) {
        PyErr_SetString(PyExc_TypeError, "swarms: is no tracker._native.Swarms");
        return NULL;
    }
    return ((struct swarms_object *)object)->swarms;
}

/* Have the swarms locked for something short. */
static void lock(struct swarms *swarms)
{
    if (swarms_trylock(swarms))
        return;
    /* Not taken in here: the interpreter would be waited for while it is held. */
    Py_BEGIN_ALLOW_THREADS
    swarms_lock(swarms);
    swarms_unlock(swarms);
    Py_END_ALLOW_THREADS
    swarms_lock(swarms);
}

static PyObject *no_memory_unless(bool well)
{
    if (!well)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* How many infohashes there are in a buffer, or -1 with ValueError set. */
static Py_ssize_t hashes_in(const Py_buffer *buffer)
{
    if (buffer->len % SWARMS_HASH_BYTES) {
        PyErr_SetString(PyExc_ValueError, "info_hashes: are not 20 bytes each");
        return -1;
    }
    return buffer->len / SWARMS_HASH_BYTES;
}

/* -- making and setting ------------------------------------------------------------------------ */

static PyObject *swarms_make(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    Py_buffer seed;
    int open, keep;
    if (named != NULL && PyDict_Size(named)) {
        PyErr_SetString(PyExc_TypeError, "Swarms() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "y*pp", &seed, &open, &keep))
        return NULL;
    struct swarms *swarms = NULL;
    if (seed.len != SWARMS_SEED_BYTES) {
        PyErr_SetString(PyExc_ValueError, "seed: has not 48 bytes");
    } else {
        /* Nothing is granted and nobody kept before the owner says how much. */
        const struct swarms_policy policy = {0};
        const struct swarms_limits limits = {0};
        swarms = swarms_new(seed.buf, open, keep, &policy, &limits);
        if (swarms == NULL)
            PyErr_NoMemory();
    }
    PyBuffer_Release(&seed);
    if (swarms == NULL)
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct swarms_object *self = (struct swarms_object *)allocate(type, 0);
    if (self == NULL)
        swarms_free(swarms);
    else
        self->swarms = swarms;
    return (PyObject *)self;
}

static void swarms_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    swarms_free(((struct swarms_object *)object)->swarms);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

#define SWARMS(object) (((struct swarms_object *)(object))->swarms)

struct swarms *swarms_in(PyObject *self)
{
    return SWARMS(self);
}

static PyObject *set_policy(PyObject *self, PyObject *arguments)
{
    unsigned int interval, leecher_interval, numwant, max_numwant, retry_minutes;
    if (!PyArg_ParseTuple(arguments, "IIIII", &interval, &leecher_interval, &numwant, &max_numwant,
                          &retry_minutes))
        return NULL;
    const struct swarms_policy policy = {interval, leecher_interval, numwant, max_numwant,
                                         retry_minutes};
    swarms_set_policy(SWARMS(self), &policy);
    Py_RETURN_NONE;
}

static PyObject *set_limits(PyObject *self, PyObject *arguments)
{
    unsigned long long swarms, peers;
    unsigned int swarm_peers, address_ports, seed_timeout, leecher_timeout;
    if (!PyArg_ParseTuple(arguments, "KKIIII", &swarms, &peers, &swarm_peers, &address_ports,
                          &seed_timeout, &leecher_timeout))
        return NULL;
    const struct swarms_limits limits = {swarms,        peers,        swarm_peers,
                                         address_ports, seed_timeout, leecher_timeout};
    swarms_set_limits(SWARMS(self), &limits);
    Py_RETURN_NONE;
}

/* Call a function with the infohashes of one argument, while other threads run. */
static PyObject *with_hashes(PyObject *self, PyObject *argument,
                             bool (*function)(struct swarms *, const uint8_t *, size_t))
{
    Py_buffer buffer;
    if (PyObject_GetBuffer(argument, &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t count = hashes_in(&buffer);
    bool well = true;
    if (count >= 0) {
        Py_BEGIN_ALLOW_THREADS
        well = function(SWARMS(self), buffer.buf, (size_t)count);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&buffer);
    return count < 0 ? NULL : no_memory_unless(well);
}

static PyObject *set_listed(PyObject *self, PyObject *info_hashes)
{
    return with_hashes(self, info_hashes, swarms_set_listed);
}

static PyObject *set_blocked(PyObject *self, PyObject *info_hashes)
{
    return with_hashes(self, info_hashes, swarms_set_blocked);
}

static PyObject *list_hashes(PyObject *self, PyObject *info_hashes)
{
    return with_hashes(self, info_hashes, swarms_list);
}

static bool unlist(struct swarms *swarms, const uint8_t *info_hashes, size_t count)
{
    swarms_unlist(swarms, info_hashes, count);
    return true;
}

static PyObject *unlist_hashes(PyObject *self, PyObject *info_hashes)
{
    return with_hashes(self, info_hashes, unlist);
}

static bool give_back(struct swarms *swarms, const uint8_t *info_hashes, size_t count)
{
    swarms_give_back(swarms, info_hashes, count);
    return true;
}

static PyObject *give_back_downloads(PyObject *self, PyObject *info_hashes)
{
    return with_hashes(self, info_hashes, give_back);
}

/* Read one network, a pair of address and length; false with an exception set. */
static bool read_network(PyObject *pair, struct swarms_network *network)
{
    const char *address;
    Py_ssize_t size;
    unsigned char prefix;
    if (!PyTuple_Check(pair)) {
        PyErr_SetString(PyExc_TypeError, "networks: are not pairs");
        return false;
    }
    if (!PyArg_ParseTuple(pair, "y#b", &address, &size, &prefix))
        return false;
    if ((size != 4 && size != 16) || prefix > size * 8) {
        PyErr_SetString(PyExc_ValueError, "networks: have no such addresses");
        return false;
    }
    network->address_bytes = (uint8_t)size;
    network->prefix = prefix;
    memcpy(network->address, address, (size_t)size);
    return true;
}

static PyObject *set_networks(PyObject *self, PyObject *list)
{
    Py_ssize_t count = PyList_Check(list) ? PyList_Size(list) : -1;
    if (count < 0) {
        PyErr_SetString(PyExc_TypeError, "networks: are no list");
        return NULL;
    }
    struct swarms_network *networks = calloc((size_t)count + 1, sizeof *networks);
    if (networks == NULL)
        return PyErr_NoMemory();
    bool well = true;
    for (Py_ssize_t index = 0; well && index < count; ++index)
        well = read_network(PyList_GetItem(list, index), &networks[index]);
    PyObject *result = NULL;
    if (well)
        result = no_memory_unless(swarms_set_networks(SWARMS(self), networks, (size_t)count));
    free(networks);
    return result;
}

/* -- announces and counts ---------------------------------------------------------------------- */

static PyObject *enter(PyObject *self, PyObject *arguments)
{
    struct swarms_request request = {0};
    const char *info_hash, *peer_id, *address;
    Py_ssize_t info_hash_bytes, peer_id_bytes, address_bytes;
    int one_family, want_ids;
    long long left, numwant, now;
    if (!PyArg_ParseTuple(arguments, "y#y#y#HLbLppL", &info_hash, &info_hash_bytes, &peer_id,
                          &peer_id_bytes, &address, &address_bytes, &request.port, &left,
                          &request.event, &numwant, &one_family, &want_ids, &now))
        return NULL;
    if (info_hash_bytes != SWARMS_HASH_BYTES || peer_id_bytes != SWARMS_HASH_BYTES ||
        (address_bytes != 4 && address_bytes != 16)) {
        PyErr_SetString(PyExc_ValueError, "announce: a hash, id or address has another size");
        return NULL;
    }
    memcpy(request.info_hash, info_hash, SWARMS_HASH_BYTES);
    memcpy(request.peer_id, peer_id, SWARMS_HASH_BYTES);
    memcpy(request.address, address, (size_t)address_bytes);
    request.address_bytes = (uint8_t)address_bytes;
    request.one_family = one_family;
    request.want_ids = want_ids;
    request.left = left;
    request.numwant = numwant;
    size_t room = numwant <= 0                  ? 0
                  : numwant > SWARMS_MAX_WANTED ? SWARMS_MAX_WANTED
                                                : (size_t)numwant;
    size_t entry = SWARMS_PEER4_BYTES + SWARMS_PEER6_BYTES + (want_ids ? 40 : 0);
    uint8_t *buffer = malloc(room * entry + 1);
    if (buffer == NULL)
        return PyErr_NoMemory();
    struct swarms_answer answer = {
        .room = (uint32_t)room, .peers4 = buffer, .peers6 = buffer + room * SWARMS_PEER4_BYTES};
    if (want_ids) {
        answer.ids4 = buffer + room * (SWARMS_PEER4_BYTES + SWARMS_PEER6_BYTES);
        answer.ids6 = answer.ids4 + room * SWARMS_HASH_BYTES;
    }
    lock(SWARMS(self));
    swarms_enter_locked(SWARMS(self), &request, now, &answer);
    swarms_unlock(SWARMS(self));
    Py_ssize_t four = answer.count4, six = answer.count6;
    PyObject *result = Py_BuildValue(
        "((IIII)(y#y#y#y#))", answer.counts.complete, answer.counts.incomplete,
        answer.counts.downloaded, answer.counts.downloaders, (const char *)answer.peers4,
        four * SWARMS_PEER4_BYTES, (const char *)answer.peers6, six * SWARMS_PEER6_BYTES,
        (const char *)(want_ids ? answer.ids4 : buffer), want_ids ? four * SWARMS_HASH_BYTES : 0,
        (const char *)(want_ids ? answer.ids6 : buffer), want_ids ? six * SWARMS_HASH_BYTES : 0);
    free(buffer);
    return result;
}

static PyObject *tuple_of(const struct swarms_counts *counts)
{
    return Py_BuildValue("(IIII)", counts->complete, counts->incomplete, counts->downloaded,
                         counts->downloaders);
}

static PyObject *scrape(PyObject *self, PyObject *argument)
{
    Py_buffer buffer;
    if (PyObject_GetBuffer(argument, &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t count = hashes_in(&buffer);
    struct swarms_counts *counts =
        count < 0 ? NULL : calloc((size_t)count + 1, sizeof *counts);
    if (counts != NULL) {
        lock(SWARMS(self));
        swarms_scrape_locked(SWARMS(self), buffer.buf, (size_t)count, counts);
        swarms_unlock(SWARMS(self));
    } else if (count >= 0) {
        PyErr_NoMemory();
    }
    PyBuffer_Release(&buffer);
    PyObject *list = counts == NULL ? NULL : PyList_New(count);
    for (Py_ssize_t index = 0; list != NULL && index < count; ++index) {
        PyObject *item = tuple_of(&counts[index]);
        if (item == NULL || PyList_SetItem(list, index, item) < 0) {
            Py_DECREF(list);
            list = NULL;
        }
    }
    free(counts);
    return list;
}

static PyObject *sample(PyObject *self, PyObject *arguments)
{
    Py_buffer buffer;
    Py_ssize_t limit;
    if (!PyArg_ParseTuple(arguments, "y*n", &buffer, &limit))
        return NULL;
    Py_ssize_t count = hashes_in(&buffer);
    struct swarms_counts counts;
    uint8_t *packed = NULL;
    uint32_t parts[4] = {0};
    bool well = false;
    if (count >= 0) {
        Py_BEGIN_ALLOW_THREADS
        well = swarms_sample(SWARMS(self), buffer.buf, (size_t)count,
                             limit < 0 ? 0 : (size_t)limit, &counts, &packed, parts);
        Py_END_ALLOW_THREADS
        if (!well)
            PyErr_NoMemory();
    }
    PyBuffer_Release(&buffer);
    PyObject *peers = well ? PyList_New(0) : NULL;
    const uint8_t *at = packed;
    for (int place = 0; peers != NULL && place < 4; ++place) {
        Py_ssize_t key = place % 2 ? SWARMS_PEER6_BYTES : SWARMS_PEER4_BYTES;
        for (uint32_t index = 0; peers != NULL && index < parts[place]; ++index, at += key) {
            PyObject *peer = PyBytes_FromStringAndSize((const char *)at, key);
            if (peer == NULL || PyList_Append(peers, peer) < 0)
                Py_CLEAR(peers);
            Py_XDECREF(peer);
        }
    }
    free(packed);
    if (peers == NULL)
        return NULL;
    return Py_BuildValue("(NN)", tuple_of(&counts), peers);
}

static PyObject *totals(PyObject *self, PyObject *Py_UNUSED(unused))
{
    lock(SWARMS(self));
    struct swarms_totals all = swarms_get_totals_locked(SWARMS(self));
    swarms_unlock(SWARMS(self));
    return Py_BuildValue("(KKKKK)", (unsigned long long)all.swarms,
                         (unsigned long long)all.peers[0], (unsigned long long)all.peers[1],
                         (unsigned long long)all.peers[2], (unsigned long long)all.peers[3]);
}

/* -- the module -------------------------------------------------------------------------------- */

static PyMethodDef swarms_methods[] = {
    {"set_policy", set_policy, METH_VARARGS, NULL},
    {"set_limits", set_limits, METH_VARARGS, NULL},
    {"set_listed", set_listed, METH_O, NULL},
    {"set_blocked", set_blocked, METH_O, NULL},
    {"set_networks", set_networks, METH_O, NULL},
    {"add_listed", list_hashes, METH_O, NULL},
    {"remove_listed", unlist_hashes, METH_O, NULL},
    {"enter", enter, METH_VARARGS, NULL},
    {"scrape", scrape, METH_O, NULL},
    {"sample", sample, METH_VARARGS, NULL},
    {"expire", upkeep_expire, METH_VARARGS, NULL},
    {"totals", totals, METH_NOARGS, NULL},
    {"restore", upkeep_restore, METH_VARARGS, NULL},
    {"take_downloads", upkeep_take_downloads, METH_NOARGS, NULL},
    {"give_back_downloads", give_back_downloads, METH_O, NULL},
    {"numbers", upkeep_numbers, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot swarms_slots[] = {
    {Py_tp_new, swarms_make},
    {Py_tp_dealloc, swarms_dealloc},
    {Py_tp_methods, swarms_methods},
    {Py_tp_doc, "The swarms of a tracker."},
    {0, NULL},
};

static PyType_Spec swarms_spec = {
    .name = "tracker._native.Swarms",
    .basicsize = sizeof(struct swarms_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = swarms_slots,
};

static int fill(PyObject *module)
{
#ifdef M_MXFAST
    /* glibc keeps small blocks that are freed aside, and puts them together all at once when it sees
     * fit: with hundreds of thousands of peers forgotten, one free() takes tens of milliseconds, with
     * the mutex held. */
    mallopt(M_MXFAST, 0);
#endif
    swarms_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &swarms_spec, NULL);
    if (swarms_type == NULL || PyModule_AddType(module, swarms_type) < 0)
        return -1;
    return udp_add_to(module) < 0 ? -1 : http_add_to(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, fill},
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tracker._native",
    .m_doc = "The native engine of the tracker.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module);
}
