// A C++ object as one of Python's, with methods and properties.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "python/bind.h"

namespace rnnfast::python {

// Of T: made by C++ only, `add`ed to a module once, before anything is made.
template <class T>
class Type {
 public:
  template <auto F>
  Type& method(const char* name, const char* arguments) {
    bind<F>(methods_, name, arguments);
    return *this;
  }

  template <auto F>
  Type& property(const char* name) {
    properties_.push_back({name, &Bound<F>::get, nullptr, nullptr, nullptr});
    return *this;
  }

  // `name`: with its module. What was said of the type stays for as long as the process lives.
  static void add(const char* name, Type& type) {
    type.methods_.push_back({});
    type.properties_.push_back({});
    PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(&deallocate)},
                           {Py_tp_methods, type.methods_.data()},
                           {Py_tp_getset, type.properties_.data()},
                           {0, nullptr}};
    PyType_Spec spec{name, sizeof(Object), 0,
                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    python() = Ref::owned(PyType_FromSpec(&spec));
  }

  static Ref make(std::unique_ptr<T> value) {
    auto* type = reinterpret_cast<PyTypeObject*>(python().get());
    Ref object = Ref::owned(PyType_GenericAlloc(type, 0));
    reinterpret_cast<Object*>(object.get())->held = value.release();
    return object;
  }

  static bool is(PyObject* object) {
    return reinterpret_cast<PyObject*>(Py_TYPE(object)) == python().get();
  }
  static T& of(PyObject* object) { return *reinterpret_cast<Object*>(object)->held; }

 private:
  struct Object {
    PyObject_HEAD T* held;
  };

  static Ref& python() {
    static Ref& type = *new Ref;
    return type;
  }

  static void deallocate(PyObject* object) {
    PyTypeObject* type = Py_TYPE(object);
    delete reinterpret_cast<Object*>(object)->held;
    reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
  }

  std::vector<PyMethodDef> methods_;
  std::vector<PyGetSetDef> properties_;
};

template <class T>
T& held(PyObject* object) {
  return Type<T>::of(object);
}

}  // namespace rnnfast::python
