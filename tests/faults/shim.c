// A broken machine: loaded with LD_PRELOAD, it lets calls on files below one folder fail, stop, be cut short, or end
// the process. Calls are counted, so that the same fault can be put before any of them. children.py is the other side.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
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
  char folder[PATH_MAX];
  if (!root_length) return 0;
  if (path[0] != '/' && getcwd(folder, sizeof folder)) return !strncmp(folder, root, root_length);
  return !strncmp(path, root, root_length);
}

static char folding[PATH_MAX];

// Names below `folder` differ by more than upper and lower case from now on, as on the disks of other systems.
void fault_fold(const char* folder) { strncpy(folding, folder, sizeof folding - 1); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

// Returns the path under which the file exists that `path` names but for upper and lower case, or `path`.
static const char* folded(const char* path, char* buffer) {
  const size_t length = strlen(folding);
  if (!length || strncmp(path, folding, length) || path[length] != '/') return path;
  strcpy(buffer, folding);
  const char* rest = path + length;
  while (*rest == '/') {
    const char* name = ++rest;
    rest = strchrnul(name, '/');
    DIR* folder = REAL(opendir)(buffer);
    size_t end = strlen(buffer);
    snprintf(buffer + end, PATH_MAX - end, "/%.*s", (int)(rest - name), name);
    for (struct dirent* entry; folder && (entry = readdir(folder));) {
      if (strlen(entry->d_name) == (size_t)(rest - name) && !strncasecmp(entry->d_name, name, rest - name)) {
        strcpy(buffer + end + 1, entry->d_name);
      }
    }
    if (folder) closedir(folder);
  }
  return buffer;
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

// Half of it; whole pages of direct writes, as disks take them.
static size_t cut(size_t size) { return size >= 8192 ? size / 2 & ~(size_t)4095 : size > 1 ? size / 2 : size; }

#define MOVES(kind, type, name, declared, given, shortened) \
  type name declared {                                      \
    static __typeof__(&name) real;                          \
    if (!real) real = REAL(name);                           \
    const int how = below(fd) ? fault(kind) : 0;            \
    if (how == 1) return -1;                                \
    if (how == 0) return real given;                        \
    const type done = real shortened;                       \
    if (how == 3) kill(getpid(), SIGKILL), pause();         \
    return done;                                            \
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
    char one[PATH_MAX], two[PATH_MAX];            \
    (void)one, (void)two;                         \
    if (!real) real = REAL(name);                 \
    if (where && fault(kind) == 1) return -1;     \
    return real given;                            \
  }

CALLS(kSync, fsync, (int fd), (fd), below(fd))
CALLS(kSync, fdatasync, (int fd), (fd), below(fd))
CALLS(kWrite, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size), below(fd))
CALLS(kMake, rename, (const char* from, const char* to), (folded(from, one), folded(to, two)), below_path(to))
CALLS(kMake, renameat2, (int a, const char* from, int b, const char* to, unsigned flags),
      (a, folded(from, one), b, folded(to, two), flags), below_path(to))
CALLS(kRemove, unlink, (const char* path), (folded(path, one)), below_path(path))
CALLS(kRemove, rmdir, (const char* path), (folded(path, one)), below_path(path))
CALLS(kMake, mkdir, (const char* path, mode_t mode), (folded(path, one), mode), below_path(path))
CALLS(0, stat64, (const char* path, struct stat64* to), (folded(path, one), to), 0)
CALLS(0, lstat64, (const char* path, struct stat64* to), (folded(path, one), to), 0)
CALLS(0, access, (const char* path, int mode), (folded(path, one), mode), 0)
CALLS(kRemove, unlinkat, (int folder, const char* path, int flags), (folder, path, flags), below(folder))

int open64(const char* path, int flags, ...) {
  static int (*real)(const char*, int, ...);
  if (!real) real = (int (*)(const char*, int, ...))dlsym(RTLD_NEXT, "open64");
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  if (flags & O_CREAT && below_path(path) && fault(kMake) == 1) return -1;
  char buffer[PATH_MAX];
  return real(folded(path, buffer), flags, mode);
}

DIR* opendir(const char* path) {
  char buffer[PATH_MAX];
  return REAL(opendir)(folded(path, buffer));
}

int clock_gettime(clockid_t id, struct timespec* now) {
  static __typeof__(&clock_gettime) real;
  if (!real) real = REAL(clock_gettime);
  const int status = real(id, now);
  if (id == CLOCK_REALTIME && clock_step)
    now->tv_sec += atomic_fetch_add(&clock_calls, 1) % 2 ? clock_step : -clock_step;
  return status;
}
