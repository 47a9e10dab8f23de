/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The HTTP front as a type of `tracker._native`, and what tests compare with tracker/wire_http.py.
 */
#include "binding.h"

#include "http.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct front_object {
    PyObject_HEAD
    struct http_front *front;
    PyObject *swarms;
    bool ran;
};

/* Read a list of (address of 4 or 16 bytes, prefix). NULL with an exception set; free() it. */
static struct http_proxies *read_networks(PyObject *list)
{
    Py_ssize_t count = PyList_Size(list);
    if (count < 0)
        return NULL;
    struct http_proxies *proxies =
        malloc(sizeof *proxies + (size_t)count * sizeof *proxies->networks);
    if (proxies == NULL)
        return (struct http_proxies *)PyErr_NoMemory();
    proxies->count = (size_t)count;
    for (Py_ssize_t index = 0; index < count; ++index) {
        const char *address;
        Py_ssize_t bytes;
        unsigned char prefix;
        PyObject *pair = PyList_GetItem(list, index);
        if (pair == NULL || !PyArg_ParseTuple(pair, "y#b", &address, &bytes, &prefix)) {
            free(proxies);
            return NULL;
        }
        if ((bytes != 4 && bytes != 16) || prefix > bytes * 8) {
            free(proxies);
            PyErr_SetString(PyExc_ValueError, "a network has 4 or 16 bytes, and a prefix in them");
            return NULL;
        }
        struct swarms_network *network = &proxies->networks[index];
        memset(network, 0, sizeof *network);
        memcpy(network->address, address, (size_t)bytes);
        network->address_bytes = (uint8_t)bytes;
        network->prefix = prefix;
    }
    return proxies;
}

static PyObject *front_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"swarms", "listeners", "connections", "per_address",
                            "head_ms", "idle_ms", "write_ms", NULL};
    PyObject *swarms, *list;
    struct http_limits limits;
    unsigned connections, per_address, head_ms, idle_ms, write_ms;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "OO$IIIII", names, &swarms, &list,
                                     &connections, &per_address, &head_ms, &idle_ms, &write_ms))
        return NULL;
    limits = (struct http_limits){connections, per_address, head_ms, idle_ms, write_ms};
    struct swarms *native = swarms_of(swarms);
    Py_ssize_t count = native == NULL ? -1 : PyList_Size(list);
    if (count < 0)
        return NULL;
    if (count > HTTP_MAX_LISTENERS) {
        PyErr_SetString(PyExc_ValueError, "too many listeners");
        return NULL;
    }
    struct http_listener listeners[HTTP_MAX_LISTENERS];
    for (Py_ssize_t index = 0; index < count; ++index) {
        PyObject *pair = PyList_GetItem(list, index);
        if (pair == NULL
            || !PyArg_ParseTuple(pair, "ii", &listeners[index].socket, &listeners[index].pipe))
            return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct front_object *self = (struct front_object *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    self->front = http_front_new(native, listeners, (size_t)count, &limits);
    if (self->front == NULL) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    Py_INCREF(swarms);
    self->swarms = swarms;
    return (PyObject *)self;
}

static void front_dealloc(PyObject *object)
{
    struct front_object *self = (struct front_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    http_front_free(self->front);
    Py_XDECREF(self->swarms);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF((PyObject *)type);
}

static PyObject *front_run(PyObject *object, PyObject *Py_UNUSED(arguments))
{
    struct front_object *self = (struct front_object *)object;
    if (self->ran) {
        PyErr_SetString(PyExc_RuntimeError, "a front runs once");
        return NULL;
    }
    self->ran = true;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = http_front_run(self->front);
    Py_END_ALLOW_THREADS
    if (error != 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *front_stop(PyObject *object, PyObject *Py_UNUSED(arguments))
{
    http_front_stop(((struct front_object *)object)->front);
    Py_RETURN_NONE;
}

static PyObject *front_give_back(PyObject *object, PyObject *arguments)
{
    int descriptor, listener;
    if (!PyArg_ParseTuple(arguments, "ii", &descriptor, &listener))
        return NULL;
    struct front_object *self = (struct front_object *)object;
    return PyBool_FromLong(listener >= 0
                           && http_front_give_back(self->front, descriptor, (size_t)listener));
}

static PyObject *front_set_proxies(PyObject *object, PyObject *list)
{
    struct http_proxies *proxies = read_networks(list);
    if (proxies == NULL)
        return NULL;
    bool set = http_front_set_proxies(((struct front_object *)object)->front, proxies->networks,
                                      proxies->count);
    free(proxies);
    if (!set)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *front_numbers(PyObject *object, PyObject *Py_UNUSED(arguments))
{
    struct http_numbers numbers = http_front_numbers(((struct front_object *)object)->front);
    return Py_BuildValue("{sKsKsKsKsKsK}", "waiting", (unsigned long long)numbers.waiting,
                         "passed_on", (unsigned long long)numbers.passed_on,
                         "evicted", (unsigned long long)numbers.evicted,
                         "late", (unsigned long long)numbers.late,
                         "malformed", (unsigned long long)numbers.malformed,
                         "refused", (unsigned long long)numbers.refused);
}

static PyMethodDef front_methods[] = {
    {"run", front_run, METH_NOARGS, "Serve until it is stopped; once."},
    {"stop", front_stop, METH_NOARGS, "Have run() end soon; from any thread."},
    {"give_back", front_give_back, METH_VARARGS,
     "give_back(descriptor, listener) -> whether it was taken over."},
    {"set_proxies", front_set_proxies, METH_O, "Believe these: a list of (address, prefix)."},
    {"numbers", front_numbers, METH_NOARGS, "What it did so far, by name."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot front_slots[] = {
    {Py_tp_new, (void *)front_new},
    {Py_tp_dealloc, (void *)front_dealloc},
    {Py_tp_methods, front_methods},
    {Py_tp_doc, "Accepts connections, and answers announces and scrapes; see http.h."},
    {0, NULL},
};

static PyType_Spec front_spec = {
    .name = "tracker._native.HttpFront",
    .basicsize = sizeof(struct front_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = front_slots,
};

static PyObject *py_answer(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *object;
    int scrape;
    const char *query, *address;
    Py_ssize_t query_bytes, address_bytes;
    long long now;
    if (!PyArg_ParseTuple(arguments, "Opy#y#L", &object, &scrape, &query, &query_bytes, &address,
                          &address_bytes, &now))
        return NULL;
    struct swarms *swarms = swarms_of(object);
    if (swarms == NULL)
        return NULL;
    if (address_bytes != 0 && address_bytes != 4 && address_bytes != 16) {
        PyErr_SetString(PyExc_ValueError, "an address has 4 or 16 bytes, or 0 when it isn't known");
        return NULL;
    }
    struct http_scratch *scratch = malloc(sizeof *scratch);
    uint8_t *body = malloc(HTTP_MAX_BODY);
    PyObject *result = NULL;
    if (scratch == NULL || body == NULL) {
        PyErr_NoMemory();
    } else {
        size_t size = http_answer(swarms, scratch, scrape != 0, (const uint8_t *)query,
                                  (size_t)query_bytes, (const uint8_t *)address,
                                  (size_t)address_bytes, now, body);
        result = PyBytes_FromStringAndSize((const char *)body, (Py_ssize_t)size);
    }
    free(scratch);
    free(body);
    return result;
}

static PyObject *py_client_address(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *list;
    const char *remote, *forwarded;
    Py_ssize_t remote_bytes, forwarded_bytes;
    if (!PyArg_ParseTuple(arguments, "Oy#z#", &list, &remote, &remote_bytes, &forwarded,
                          &forwarded_bytes))
        return NULL;
    if (remote_bytes != 4 && remote_bytes != 16) {
        PyErr_SetString(PyExc_ValueError, "an address has 4 or 16 bytes");
        return NULL;
    }
    struct http_proxies *proxies = read_networks(list);
    if (proxies == NULL)
        return NULL;
    uint8_t address[16];
    size_t bytes = http_client_address(proxies, (const uint8_t *)remote, (size_t)remote_bytes,
                                       forwarded, (size_t)forwarded_bytes, address);
    free(proxies);
    if (bytes == 0)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)address, (Py_ssize_t)bytes);
}

static PyObject *py_read(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    const char *data;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "y#", &data, &size))
        return NULL;
    size_t seen = 0;
    enum http_scanned scanned = http_scan((const uint8_t *)data, (size_t)size, &seen);
    if (scanned != HTTP_WHOLE)
        return PyUnicode_FromString(scanned == HTTP_MORE ? "incomplete" : "malformed");
    struct http_request *request = malloc(sizeof *request);
    if (request == NULL)
        return PyErr_NoMemory();
    PyObject *result;
    if (!http_read((const uint8_t *)data, seen, request))
        result = PyUnicode_FromString("others");
    else
        result = Py_BuildValue(
            "{sOsOsOsy#sy#sn}", "scrape", request->scrape ? Py_True : Py_False, "head",
            request->head ? Py_True : Py_False, "keep_alive",
            request->keep_alive ? Py_True : Py_False, "query", (const char *)request->query,
            (Py_ssize_t)request->query_size, "forwarded",
            request->forwarded ? request->forwarded_for : NULL,
            (Py_ssize_t)request->forwarded_size, "length", (Py_ssize_t)seen);
    free(request);
    return result;
}

static PyMethodDef functions[] = {
    {"http_answer", py_answer, METH_VARARGS,
     "http_answer(swarms, scrape, query, address, now) -> body of the reply."},
    {"http_client_address", py_client_address, METH_VARARGS,
     "http_client_address(proxies, remote, forwarded) -> address, or None; see Policy."},
    {"http_read", py_read, METH_VARARGS,
     "http_read(bytes) -> 'incomplete', 'malformed', 'others', or what the first head says."},
    {NULL, NULL, 0, NULL},
};

int http_add_to(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&front_spec);
    if (type == NULL)
        return -1;
    int result = PyModule_AddObjectRef(module, "HttpFront", type);
    Py_DECREF(type);
    return result < 0 ? -1 : PyModule_AddFunctions(module, functions);
}
