/* fsync of a file below FSYNC_BELOW fails at its FSYNC_FAILS_AT-th call; every call is a line of FSYNC_LOG: inode, verdict, path.

   As Linux does it, the error is told once: a second fsync of the same file would say that all is well. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int calls = 0;

static int watched(int fd, const char *name) {
    char link[64], path[4096], line[4300];
    const char *below = getenv("FSYNC_BELOW"), *log = getenv("FSYNC_LOG"), *at = getenv("FSYNC_FAILS_AT");
    struct stat facts;
    ssize_t n;
    int fails, out;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n < 0 || !below || !log || !at) return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
    path[n] = 0;
    if (strncmp(path, below, strlen(below)) != 0) return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
    fails = ++calls == atoi(at);
    fstat(fd, &facts);
    n = snprintf(line, sizeof line, "%lu %s %s\n", (unsigned long)facts.st_ino, fails ? "failed" : "done", path);
    out = open(log, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (out >= 0) {
        if (write(out, line, n) != n) fails = 0;
        close(out);
    }
    if (fails) {
        errno = EIO;
        return -1;
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}

int fsync(int fd) { return watched(fd, "fsync"); }

int fdatasync(int fd) { return watched(fd, "fdatasync"); }
