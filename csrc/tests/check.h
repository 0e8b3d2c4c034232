// The unit tests' one macro: says what failed and where, and makes the executable fail.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::fprintf(stderr, "%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                             \
    }                                                                           \
  } while (false)

#define CHECK_THROWS(expression, error)    \
  do {                                     \
    bool caught = false;                   \
    try {                                  \
      static_cast<void>(expression);       \
    } catch (const error&) {               \
      caught = true;                       \
    }                                      \
    CHECK(caught);                         \
  } while (false)
