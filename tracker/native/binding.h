/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the parts of the extension module `tracker._native` share towards Python.
 *
 * Each front end has its own type, in its own file, and adds it to the module; module.c has the
 * swarms, some methods of which are in upkeep.c, and calls them.
 */
#ifndef NARSWARM_BINDING_H
#define NARSWARM_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "swarms.h"

/* The swarms behind an object of `tracker._native.Swarms`, or NULL with TypeError set. Whoever keeps
 * the pointer keeps a reference to the object. */
struct swarms *swarms_of(PyObject *object);

/* The same of an object that is one, such as the first argument of its methods. */
struct swarms *swarms_in(PyObject *self);

/* Methods of `tracker._native.Swarms`, in upkeep.c. */
PyObject *upkeep_expire(PyObject *self, PyObject *arguments);
PyObject *upkeep_restore(PyObject *self, PyObject *arguments);
PyObject *upkeep_take_downloads(PyObject *self, PyObject *unused);
PyObject *upkeep_numbers(PyObject *self, PyObject *unused);

/* Add the types of a front end to the module; -1 with an exception set. */
int udp_add_to(PyObject *module);
int http_add_to(PyObject *module);

#endif
