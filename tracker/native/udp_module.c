/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * `tracker._native.Udp`: the loop of udp.c, which a thread of Python runs without the interpreter.
 */
#include "binding.h"

#include <errno.h>

#include "udp.h"

#define MAX_DESCRIPTORS 64

struct udp_object {
    PyObject_HEAD
    PyObject *owner; /* of the swarms */
    struct swarms *swarms;
    struct udp_server *server;
    struct connection_ids ids;
};

static PyObject *make(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    PyObject *owner, *list;
    Py_buffer key;
    if (named != NULL && PyDict_Size(named)) {
        PyErr_SetString(PyExc_TypeError, "Udp() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "Oy*O", &owner, &key, &list))
        return NULL;
    struct swarms *swarms = swarms_of(owner);
    struct udp_object *self = NULL;
    int descriptors[MAX_DESCRIPTORS];
    Py_ssize_t count = PyList_Check(list) ? PyList_Size(list) : -1;
    bool well = swarms != NULL;
    if (well && (key.len != CONNECTION_KEY_BYTES || count < 0 || count > MAX_DESCRIPTORS)) {
        PyErr_SetString(PyExc_ValueError, "udp: takes a key of 32 bytes, and 64 sockets at most");
        well = false;
    }
    for (Py_ssize_t index = 0; well && index < count; ++index) {
        descriptors[index] = (int)PyLong_AsLong(PyList_GetItem(list, index));
        well = !PyErr_Occurred();
    }
    if (well) {
        struct udp_server *server = udp_open(swarms, key.buf, descriptors, (size_t)count);
        if (server == NULL) {
            PyErr_SetFromErrno(PyExc_OSError);
        } else {
            allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
            self = (struct udp_object *)allocate(type, 0);
            if (self == NULL) {
                udp_close(server);
            } else {
                Py_INCREF(owner);
                self->owner = owner;
                self->swarms = swarms;
                self->server = server;
                connection_ids_init(&self->ids, key.buf);
            }
        }
    }
    PyBuffer_Release(&key);
    return (PyObject *)self;
}

static void dealloc(PyObject *object)
{
    struct udp_object *self = (struct udp_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    udp_close(self->server);
    Py_XDECREF(self->owner);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyObject *serve(PyObject *object, PyObject *Py_UNUSED(unused))
{
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = udp_serve(((struct udp_object *)object)->server);
    Py_END_ALLOW_THREADS
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *stop(PyObject *object, PyObject *Py_UNUSED(unused))
{
    udp_stop(((struct udp_object *)object)->server);
    Py_RETURN_NONE;
}

static PyObject *respond(PyObject *object, PyObject *arguments)
{
    struct udp_object *self = (struct udp_object *)object;
    const char *packet, *address;
    Py_ssize_t size, address_bytes;
    long long now;
    if (!PyArg_ParseTuple(arguments, "y#y#L", &packet, &size, &address, &address_bytes, &now))
        return NULL;
    if (address_bytes != 4 && address_bytes != 16) {
        PyErr_SetString(PyExc_ValueError, "address: has neither 4 nor 16 bytes");
        return NULL;
    }
    uint8_t reply[UDP_MAX_REPLY];
    struct udp_tally tally = {0};
    size_t written;
    Py_BEGIN_ALLOW_THREADS
    swarms_lock(self->swarms);
    written = udp_respond(self->swarms, &self->ids, (const uint8_t *)packet, (size_t)size,
                          (const uint8_t *)address, (size_t)address_bytes, now, reply, &tally);
    swarms_unlock(self->swarms);
    udp_count(self->swarms, &tally, 0);
    Py_END_ALLOW_THREADS
    if (written == 0)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)reply, (Py_ssize_t)written);
}

static PyMethodDef methods[] = {
    {"serve", serve, METH_NOARGS, NULL},
    {"stop", stop, METH_NOARGS, NULL},
    {"respond", respond, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, make},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_tp_doc, "Serves UDP sockets."},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "tracker._native.Udp",
    .basicsize = sizeof(struct udp_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

int udp_add_to(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    int result = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return result;
}
