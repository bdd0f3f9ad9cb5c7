// A layer over the calls by which a library could run or reach something else, preloaded into a Python (tests/python/test_security.py): each
// is told in the file that PACELINE_WATCHED_CALLS names, with its first argument, and then made.
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

namespace {

void tell(const char* call, const char* argument) {
  static const char* path = getenv("PACELINE_WATCHED_CALLS");
  if (!path) return;
  static const auto open_file = reinterpret_cast<int (*)(const char*, int, ...)>(dlsym(RTLD_NEXT, "open64"));
  static const int file = open_file(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  char line[4200];
  const int length = snprintf(line, sizeof line, "%s %s\n", call, argument ? argument : "");
  if (write(file, line, size_t(length)) != length) abort();
}

template <class Function>
Function next(Function, const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The mode is there where the flags say so; passing on what is not does no harm.
#define OPENS(name)                                     \
  EXPORTED int name(const char* path, int flags, ...) { \
    va_list rest;                                       \
    va_start(rest, flags);                              \
    const mode_t mode = mode_t(va_arg(rest, int));      \
    va_end(rest);                                       \
    tell("open", path);                                 \
    return next(&name, #name)(path, flags, mode);       \
  }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                 \
  EXPORTED int name(int directory, const char* path, int flags, ...) { \
    va_list rest;                                                      \
    va_start(rest, flags);                                             \
    const mode_t mode = mode_t(va_arg(rest, int));                     \
    va_end(rest);                                                      \
    tell("open", path);                                                \
    return next(&name, #name)(directory, path, flags, mode);           \
  }
OPENS_AT(openat)
OPENS_AT(openat64)

EXPORTED FILE* fopen(const char* path, const char* mode) { return tell("open", path), next(&fopen, "fopen")(path, mode); }
EXPORTED FILE* fopen64(const char* path, const char* mode) { return tell("open", path), next(&fopen64, "fopen64")(path, mode); }
EXPORTED int socket(int domain, int type, int protocol) { return tell("socket", ""), next(&socket, "socket")(domain, type, protocol); }
EXPORTED int execve(const char* path, char* const* arguments, char* const* environment) {
  return tell("execve", path), next(&execve, "execve")(path, arguments, environment);
}
EXPORTED int posix_spawn(pid_t* child, const char* path, const posix_spawn_file_actions_t* actions, const posix_spawnattr_t* attributes,
                         char* const* arguments, char* const* environment) {
  return tell("posix_spawn", path), next(&posix_spawn, "posix_spawn")(child, path, actions, attributes, arguments, environment);
}
EXPORTED int system(const char* command) { return tell("system", command), next(&system, "system")(command); }
EXPORTED FILE* popen(const char* command, const char* mode) { return tell("popen", command), next(&popen, "popen")(command, mode); }
EXPORTED pid_t fork() { return tell("fork", ""), next(&fork, "fork")(); }
EXPORTED void* dlopen(const char* path, int flags) { return tell("dlopen", path), next(&dlopen, "dlopen")(path, flags); }
