#include "python/bind.h"

namespace rnnfast::python {

Signature::Signature(const char* name, const std::string& arguments) : name_(name) {
  std::istringstream words(arguments);
  bool named = false;
  for (std::string word; std::getline(words >> std::ws, word, ',');) {
    if (word == "*") {
      named = true;
      continue;
    }
    names_.push_back(interned(word.c_str()));
    positional_ += !named;
  }
}

size_t Signature::index_of(PyObject* name, size_t expected) const {
  const size_t n = names_.size();
  if (expected < n && names_[expected].get() == name) return expected;
  for (size_t i = 0; i < n; ++i)
    if (names_[i].get() == name) return i;
  for (size_t i = 0; i < n; ++i)
    if (PyUnicode_Compare(names_[i].get(), name) == 0) return i;
  throw Error(PyExc_TypeError,
              std::string(name_) + "() has no argument " + From<std::string>::of(name));
}

void Signature::sort(PyObject* const* given, Py_ssize_t positional, PyObject* names,
                     PyObject** found) const {
  const size_t n = static_cast<size_t>(positional);
  check_type(n <= positional_, name_, "() takes ", positional_, " arguments by position, got ", n);
  std::copy(given, given + n, found);
  const Py_ssize_t more = names ? PyTuple_Size(names) : 0;
  size_t next = n;
  for (Py_ssize_t k = 0; k < more; ++k) {
    const size_t index = index_of(PyTuple_GetItem(names, k), next);
    check_type(!found[index], name_, "() got one argument twice");
    found[index] = given[positional + k];
    next = index + 1;
  }
}

void Signature::lacks(size_t index) const {
  throw Error(PyExc_TypeError, std::string(name_) + "() lacks the argument " +
                                   From<std::string>::of(names_[index].get()));
}

}  // namespace rnnfast::python
