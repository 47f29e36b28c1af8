// Comes before libc in a child: lets a disk fail, and notes what is written.
//
// DISK_FAILS: a file that holds how the names end of those files whose fsync fails; nothing while it is empty.
// DISK_LOG: a file that gets a line for each write: what, and the file's name.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static int name_of(int fd, char *name, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, name, size - 1);
    if (len < 0) return 0;
    name[len] = 0;
    return 1;
}

static int fails(int fd) {
    const char *control = getenv("DISK_FAILS");
    char name[4096], end[256];
    if (!control || !name_of(fd, name, sizeof name)) return 0;
    int file = syscall(SYS_openat, AT_FDCWD, control, O_RDONLY);
    if (file < 0) return 0;
    ssize_t len = syscall(SYS_read, file, end, sizeof end - 1);
    syscall(SYS_close, file);
    if (len <= 0) return 0;
    end[len] = 0;
    size_t whole = strlen(name);
    return whole >= (size_t)len && strcmp(name + whole - len, end) == 0;
}

static void note(const char *what, int fd) {
    const char *log = getenv("DISK_LOG");
    char name[4096], line[4200];
    if (!log || !name_of(fd, name, sizeof name)) return;
    int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (file < 0) return;
    int len = snprintf(line, sizeof line, "%s %s\n", what, name);
    syscall(SYS_write, file, line, len);
    syscall(SYS_close, file);
}

int fsync(int fd) {
    if (fails(fd)) return errno = EIO, -1;
    return syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    if (fails(fd)) return errno = EIO, -1;
    return syscall(SYS_fdatasync, fd);
}

#define NEXT(type, name) type next = (type)dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *from, size_t len) {
    note("write", fd);
    return syscall(SYS_write, fd, from, len);
}

typedef ssize_t (*pwrite_type)(int, const void *, size_t, off_t);

ssize_t pwrite(int fd, const void *from, size_t len, off_t at) {
    NEXT(pwrite_type, pwrite);
    note("pwrite", fd);
    return next(fd, from, len, at);
}

ssize_t pwrite64(int fd, const void *from, size_t len, off_t at) {
    NEXT(pwrite_type, pwrite64);
    note("pwrite", fd);
    return next(fd, from, len, at);
}

typedef int (*ftruncate_type)(int, off_t);

int ftruncate(int fd, off_t len) {
    NEXT(ftruncate_type, ftruncate);
    note("ftruncate", fd);
    return next(fd, len);
}

int ftruncate64(int fd, off_t len) {
    NEXT(ftruncate_type, ftruncate64);
    note("ftruncate", fd);
    return next(fd, len);
}
