// C++ functions for Python: arguments by position or by name, an optional one may be left out.
//
//   bind<&add>(functions, "add", "a, b, *, row");
//
// Arguments are what From knows, results what to_python knows. What C++ throws becomes Python's
// error.
#pragma once

#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "python/tensor.h"

namespace rnnfast::python {

template <class T>
struct From;  // static T of(PyObject*)

template <>
struct From<Ref> {
  static Ref of(PyObject* object) { return Ref::borrowed(object); }
};
template <>
struct From<Tensor> {
  static Tensor of(PyObject* object) { return Tensor::of(Ref::borrowed(object)); }
};
template <>
struct From<int64_t> {
  static int64_t of(PyObject* object) {
    const long long value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred()) throw Raised();
    return value;
  }
};
template <>
struct From<int> {
  static int of(PyObject* object) { return static_cast<int>(From<int64_t>::of(object)); }
};
template <>
struct From<bool> {
  static bool of(PyObject* object) {
    const int value = PyObject_IsTrue(object);
    if (value < 0) throw Raised();
    return value != 0;
  }
};
template <>
struct From<double> {
  static double of(PyObject* object) {
    const double value = PyFloat_AsDouble(object);
    if (value == -1 && PyErr_Occurred()) throw Raised();
    return value;
  }
};
template <>
struct From<std::string> {
  static std::string of(PyObject* object) {
    const char* text = PyUnicode_AsUTF8AndSize(object, nullptr);
    if (!text) throw Raised();
    return text;
  }
};
template <>
struct From<ScalarType> {
  static ScalarType of(PyObject* object) { return dtype_of(Ref::borrowed(object)); }
};
template <class T>
struct From<std::optional<T>> {
  static std::optional<T> of(PyObject* object) {
    if (!object || object == Py_None) return std::nullopt;
    return From<T>::of(object);
  }
};
template <class T>
struct From<std::vector<T>> {
  static std::vector<T> of(PyObject* object) {
    std::vector<T> found;
    const Py_ssize_t n = PySequence_Size(object);
    if (n < 0) throw Raised();
    for (Py_ssize_t i = 0; i < n; ++i) {
      const Ref item = Ref::owned(PySequence_GetItem(object, i));
      found.push_back(From<T>::of(item.get()));
    }
    return found;
  }
};

template <class... T>
struct From<std::tuple<T...>> {
  static std::tuple<T...> of(PyObject* object) {
    check_type(PyTuple_Check(object) && PyTuple_Size(object) == sizeof...(T),
               "expected a tuple of ", sizeof...(T));
    return of(object, std::index_sequence_for<T...>());
  }

 private:
  template <size_t... I>
  static std::tuple<T...> of(PyObject* object, std::index_sequence<I...>) {
    return {From<T>::of(PyTuple_GetItem(object, I))...};
  }
};

inline Ref to_python(Ref value) { return value; }
inline Ref to_python(const Tensor& value) { return value.object(); }
inline Ref to_python(bool value) { return Ref::owned(PyBool_FromLong(value)); }
inline Ref to_python(int value) { return Ref::owned(PyLong_FromLong(value)); }
inline Ref to_python(int64_t value) { return Ref::owned(PyLong_FromLongLong(value)); }
inline Ref to_python(double value) { return Ref::owned(PyFloat_FromDouble(value)); }
inline Ref to_python(const std::string& value) {
  return Ref::owned(PyUnicode_FromStringAndSize(value.data(), Py_ssize_t(value.size())));
}
template <class T>
Ref to_python(const std::optional<T>& value) {
  return value ? to_python(*value) : Ref::borrowed(Py_None);
}
template <class T>
Ref to_python(const std::vector<T>& values) {
  Ref list = Ref::owned(PyList_New(static_cast<Py_ssize_t>(values.size())));
  for (size_t i = 0; i < values.size(); ++i)
    PyList_SetItem(list.get(), static_cast<Py_ssize_t>(i), to_python(values[i]).release());
  return list;
}
template <class... T>
Ref to_python(const std::tuple<T...>& values) {
  Ref tuple = Ref::owned(PyTuple_New(sizeof...(T)));
  Py_ssize_t i = 0;
  std::apply(
      [&](const T&... value) {
        (PyTuple_SetItem(tuple.get(), i++, to_python(value).release()), ...);
      },
      values);
  return tuple;
}

// What a function's arguments are called; "*": what comes after it is given by name.
class Signature {
 public:
  Signature() = default;
  Signature(const char* name, const std::string& arguments);

  const char* name() const { return name_; }
  size_t size() const { return names_.size(); }
  // The arguments in their order, null for one that is not given. TypeError for one too many.
  void sort(PyObject* const* given, Py_ssize_t positional, PyObject* names, PyObject** found) const;
  [[noreturn]] void lacks(size_t index) const;

 private:
  size_t index_of(PyObject* name, size_t expected) const;

  const char* name_ = nullptr;
  std::vector<Ref> names_;
  size_t positional_ = 0;
};

// body(), or null with Python's error set.
template <class Body>
PyObject* guarded(const Body& body) noexcept {
  try {
    return body();
  } catch (const Raised&) {
  } catch (const Error& error) {
    PyErr_SetString(error.type(), error.what());
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <class T>
inline constexpr bool kMayLack = false;
template <class T>
inline constexpr bool kMayLack<std::optional<T>> = true;

template <class T>
T argument(const Signature& signature, PyObject* const* found, size_t index) {
  if constexpr (!kMayLack<T>)
    if (!found[index]) signature.lacks(index);
  return From<T>::of(found[index]);
}

// call(arguments…), whose types are A…, with what Python gave.
template <class... A, class Call, size_t... I>
PyObject* called(const Signature& signature, PyObject* const* given, Py_ssize_t n, PyObject* names,
                 const Call& call, std::index_sequence<I...>) {
  PyObject* found[sizeof...(A) + 1] = {};
  signature.sort(given, n, names, found);
  // braces: from left to right
  std::tuple<std::decay_t<A>...> arguments{argument<std::decay_t<A>>(signature, found, I)...};
  return std::apply(call, arguments);
}

template <auto F, class Type = decltype(F)>
struct Bound;

template <auto F, class R, class... A>
struct Bound<F, R (*)(A...)> {
  static inline Signature& signature = *new Signature;
  static PyObject* call(PyObject*, PyObject* const* given, Py_ssize_t n, PyObject* names) {
    return guarded([&] {
      return called<A...>(
          signature, given, n, names, [](auto&... a) { return to_python(F(a...)).release(); },
          std::index_sequence_for<A...>());
    });
  }
};

inline PyMethodDef method(const char* name, _PyCFunctionFastWithKeywords call) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(call)),
          METH_FASTCALL | METH_KEYWORDS, nullptr};
}

// R T::method(A…), const or not, of an object of Python that holds a T (type.h).
template <class T>
T& held(PyObject* object);

template <auto F, class T, class R, class... A>
struct BoundMethod {
  static inline Signature& signature = *new Signature;
  static PyObject* call(PyObject* self, PyObject* const* given, Py_ssize_t n, PyObject* names) {
    return guarded([&] {
      return called<A...>(
          signature, given, n, names,
          [self](auto&... a) {
            if constexpr (std::is_void_v<R>) {
              (held<T>(self).*F)(a...);
              return Ref::borrowed(Py_None).release();
            } else {
              return to_python((held<T>(self).*F)(a...)).release();
            }
          },
          std::index_sequence_for<A...>());
    });
  }
  static PyObject* get(PyObject* self, void*) { return call(self, nullptr, 0, nullptr); }
};
template <auto F, class T, class R, class... A>
struct Bound<F, R (T::*)(A...)> : BoundMethod<F, T, R, A...> {};
template <auto F, class T, class R, class... A>
struct Bound<F, R (T::*)(A...) const> : BoundMethod<F, T, R, A...> {};

template <auto F>
void bind(std::vector<PyMethodDef>& functions, const char* name, const char* arguments) {
  Bound<F>::signature = Signature(name, arguments);
  functions.push_back(method(name, &Bound<F>::call));
}

}  // namespace rnnfast::python
