// A broken machine: loaded with LD_PRELOAD, it lets calls on files below one folder fail, stop, be cut short, or end the
// process. Calls are counted, so that the same fault can be put before any of them. children.py is the other side.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { kRead = 1, kWrite = 2, kSync = 4, kMake = 8, kRemove = 16 };           // kinds of calls
enum { kCount, kKill, kKillAfterHalf, kFail, kFailOnward, kSignal, kShort };  // what happens at the nth

static char root[PATH_MAX];
static size_t root_length;
static int kinds, action, value;
static long nth, clock_step;
static atomic_long calls, clock_calls;

// Counts from now on the calls of these kinds on files below `folder`; at the nth, `what` happens.
void fault_arm(const char* folder, int of_kinds, long at, int what, int with) {
  root_length = strlen(strncpy(root, folder, sizeof root - 1));
  kinds = of_kinds, nth = at, action = what, value = with;
  atomic_store(&calls, 0);
}

long fault_calls(void) { return atomic_load(&calls); }

// Lets the wall clock jump by so many seconds to and fro from now on.
void fault_clock(long seconds) { clock_step = seconds; }

static int below_path(const char* path) {
  char resolved[PATH_MAX];
  if (!root_length) return 0;
  if (path[0] != '/' && getcwd(resolved, sizeof resolved)) return !strncmp(resolved, root, root_length);
  return !strncmp(path, root, root_length);
}

static int below(int fd) {
  char link[64], path[PATH_MAX];
  if (!root_length) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return below_path(path);
}

// Returns 1 where the call has to fail (errno is set), 2 where it has to be cut short, 3 where the process ends after
// half of it, 0 otherwise.
static int fault(int kind) {
  if (!(kinds & kind)) return 0;
  if (action == kShort) return 2;
  const long call = atomic_fetch_add(&calls, 1) + 1;
  if (call < nth || (call > nth && action != kFailOnward)) return 0;
  switch (action) {
    case kKill:
      kill(getpid(), SIGKILL);
      pause();
      return 0;
    case kKillAfterHalf:
      return 3;
    case kFail:
    case kFailOnward:
      errno = value;
      return 1;
    case kSignal:
      kill(getpid(), value);
      return 0;
    default:
      return 0;
  }
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

// Half of it; whole pages of direct writes, as disks take them.
static size_t cut(size_t size) { return size >= 8192 ? size / 2 & ~(size_t)4095 : size > 1 ? size / 2 : size; }

#define MOVES(kind, type, name, declared, given, shortened)   \
  type name declared {                                        \
    static __typeof__(&name) real;                            \
    if (!real) real = REAL(name);                             \
    const int how = below(fd) ? fault(kind) : 0;              \
    if (how == 1) return -1;                                  \
    if (how == 0) return real given;                          \
    const type done = real shortened;                         \
    if (how == 3) kill(getpid(), SIGKILL), pause();           \
    return done;                                              \
  }

MOVES(kRead, ssize_t, read, (int fd, void* to, size_t size), (fd, to, size), (fd, to, cut(size)))
MOVES(kRead, ssize_t, pread64, (int fd, void* to, size_t size, off64_t at), (fd, to, size, at), (fd, to, cut(size), at))
MOVES(kWrite, ssize_t, write, (int fd, const void* from, size_t size), (fd, from, size), (fd, from, cut(size)))
MOVES(kWrite, ssize_t, pwrite64, (int fd, const void* from, size_t size, off64_t at), (fd, from, size, at),
      (fd, from, cut(size), at))

static struct iovec first_half(const struct iovec* all) {
  struct iovec half = all[0];
  half.iov_len = cut(half.iov_len);
  return half;
}

ssize_t preadv64v2(int fd, const struct iovec* to, int count, off64_t at, int flags) {
  static __typeof__(&preadv64v2) real;
  if (!real) real = REAL(preadv64v2);
  const int how = below(fd) ? fault(kRead) : 0;
  if (how == 1) return -1;
  if (how == 0) return real(fd, to, count, at, flags);
  struct iovec half = first_half(to);
  const ssize_t done = real(fd, &half, 1, at, flags);
  if (how == 3) kill(getpid(), SIGKILL), pause();
  return done;
}

#define CALLS(kind, name, declared, given, where) \
  int name declared {                             \
    static __typeof__(&name) real;                \
    if (!real) real = REAL(name);                 \
    if (where && fault(kind) == 1) return -1;     \
    return real given;                            \
  }

CALLS(kSync, fsync, (int fd), (fd), below(fd))
CALLS(kSync, fdatasync, (int fd), (fd), below(fd))
CALLS(kWrite, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size), below(fd))
CALLS(kMake, rename, (const char* from, const char* to), (from, to), below_path(to))
CALLS(kMake, renameat2, (int a, const char* from, int b, const char* to, unsigned flags), (a, from, b, to, flags),
      below_path(to))
CALLS(kRemove, unlink, (const char* path), (path), below_path(path))
CALLS(kRemove, rmdir, (const char* path), (path), below_path(path))
CALLS(kMake, mkdir, (const char* path, mode_t mode), (path, mode), below_path(path))
CALLS(kRemove, unlinkat, (int folder, const char* path, int flags), (folder, path, flags), below(folder))

int open64(const char* path, int flags, ...) {
  static int (*real)(const char*, int, ...);
  if (!real) real = (int (*)(const char*, int, ...))dlsym(RTLD_NEXT, "open64");
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  if (flags & O_CREAT && below_path(path) && fault(kMake) == 1) return -1;
  return real(path, flags, mode);
}

int clock_gettime(clockid_t id, struct timespec* now) {
  static __typeof__(&clock_gettime) real;
  if (!real) real = REAL(clock_gettime);
  const int status = real(id, now);
  if (id == CLOCK_REALTIME && clock_step) now->tv_sec += atomic_fetch_add(&clock_calls, 1) % 2 ? clock_step : -clock_step;
  return status;
}
