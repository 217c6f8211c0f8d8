// Python's objects and errors, on its limited API: what is compiled of this folder runs with every
// CPython from 3.10 on.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#ifndef Py_LIMITED_API
#error "this folder is compiled with Py_LIMITED_API"
#endif

namespace rnnfast::python {

// Python's own error is set already.
struct Raised {};

// An error of one of Python's types.
class Error : public std::runtime_error {
 public:
  Error(PyObject* type, const std::string& text) : std::runtime_error(text), type_(type) {}
  PyObject* type() const { return type_; }

 private:
  PyObject* type_;
};

// Unless `ok`, throws an error of `type` that says `parts`.
template <class... Parts>
void require(PyObject* type, bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream text;
  (text << ... << parts);
  throw Error(type, text.str());
}

template <class... Parts>
void check(bool ok, const Parts&... parts) {
  require(PyExc_RuntimeError, ok, parts...);
}
template <class... Parts>
void check_value(bool ok, const Parts&... parts) {
  require(PyExc_ValueError, ok, parts...);
}
template <class... Parts>
void check_type(bool ok, const Parts&... parts) {
  require(PyExc_TypeError, ok, parts...);
}

// A reference that is held. Copied and let go of with the GIL only.
class Ref {
 public:
  Ref() = default;
  static Ref owned(PyObject* object) {  // a new reference, or null where Python raised
    if (!object) throw Raised();
    return Ref(object);
  }
  static Ref taken(PyObject* object) { return Ref(object); }  // a new reference, or null
  static Ref borrowed(PyObject* object) {
    if (!object) throw Raised();
    Py_INCREF(object);
    return Ref(object);
  }
  Ref(const Ref& other) : object_(other.object_) { Py_XINCREF(object_); }
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() { Py_XDECREF(object_); }

  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

  Ref attribute(const char* name) const { return owned(PyObject_GetAttrString(object_, name)); }
  // object(arguments…)
  template <class... Arguments>
  Ref operator()(Arguments... arguments) const {
    return owned(PyObject_CallFunctionObjArgs(object_, arguments..., nullptr));
  }
  // object.name(arguments…); `name` a str
  template <class... Arguments>
  Ref call(const Ref& name, Arguments... arguments) const {
    return owned(PyObject_CallMethodObjArgs(object_, name.get(), arguments..., nullptr));
  }
  bool is_true() const {
    const int found = PyObject_IsTrue(object_);
    if (found < 0) throw Raised();
    return found == 1;
  }

 private:
  explicit Ref(PyObject* object) : object_(object) {}
  PyObject* object_ = nullptr;
};

inline Ref interned(const char* name) { return Ref::owned(PyUnicode_InternFromString(name)); }

inline Ref import(const char* name) { return Ref::owned(PyImport_ImportModule(name)); }

// Others may run Python in the meantime.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() { PyEval_RestoreThread(state_); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace rnnfast::python
