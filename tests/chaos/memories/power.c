#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Notes how long each regular file was when it was last synced: what of it survives a loss of power. */

static void note(int file, off_t length, ino_t inode) {
    static int log = -1;
    char line[64];
    const char *path = getenv("POWER_LOG");
    if (log < 0 && path) log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0 || file == log) return;
    int size = snprintf(line, sizeof line, "%llu %lld\n", (unsigned long long)inode, (long long)length);
    if (write(log, line, size) != size) abort();
}

static int synced(int file, const char *name) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    struct stat before;
    int known = fstat(file, &before) == 0 && S_ISREG(before.st_mode);
    int answer = real(file);
    if (answer == 0 && known) note(file, before.st_size, before.st_ino);
    return answer;
}

int fsync(int file) { return synced(file, "fsync"); }
int fdatasync(int file) { return synced(file, "fdatasync"); }
