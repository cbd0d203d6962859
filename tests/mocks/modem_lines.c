/* Modem lines for pseudo terminals, which have none: preloaded, it answers TIOCMGET, TIOCMSET, TIOCMBIS and TIOCMBIC from a file
   $MODEM_DIR/N for /dev/pts/N. The first use of a descriptor raises RTS and DTR, as a driver does when a port is opened; closing drops both.
   The file: int outputs, int inputs, unsigned changes, int unused, then a log of {double s, int outputs, int unused}. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define ENTRIES 4096
#define OUTPUTS (TIOCM_RTS | TIOCM_DTR)

struct lines {
    int outputs, inputs;
    unsigned changes;
    int unused;
    struct { double at; int outputs, unused; } log[ENTRIES];
};

static struct lines *of_descriptor[1024];

static void set(struct lines *lines, int outputs) {
    struct timespec now;
    if (outputs == lines->outputs && lines->changes) return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    lines->outputs = outputs;
    lines->log[lines->changes % ENTRIES].at = now.tv_sec + now.tv_nsec / 1e9;
    lines->log[lines->changes % ENTRIES].outputs = outputs;
    __sync_fetch_and_add(&lines->changes, 1);
}

static struct lines *lines_of(int descriptor) {
    char name[64], path[512];
    const char *folder = getenv("MODEM_DIR");
    int file;
    if (descriptor < 0 || descriptor >= 1024 || !folder) return NULL;
    if (of_descriptor[descriptor]) return of_descriptor[descriptor];
    if (ttyname_r(descriptor, name, sizeof name) || strncmp(name, "/dev/pts/", 9)) return NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name + 9);
    file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) return NULL;
    if (ftruncate(file, sizeof(struct lines))) return NULL;
    of_descriptor[descriptor] = mmap(NULL, sizeof(struct lines), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (of_descriptor[descriptor] == MAP_FAILED) return of_descriptor[descriptor] = NULL;
    set(of_descriptor[descriptor], OUTPUTS);
    return of_descriptor[descriptor];
}

int ioctl(int descriptor, unsigned long request, ...) {
    static int (*real)(int, unsigned long, ...);
    va_list arguments;
    void *argument;
    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!real) real = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    if (request == TIOCMGET || request == TIOCMSET || request == TIOCMBIS || request == TIOCMBIC) {
        struct lines *lines = lines_of(descriptor);
        if (lines) {
            int bits = *(int *)argument & OUTPUTS;
            if (request == TIOCMGET) *(int *)argument = lines->outputs | lines->inputs;
            else set(lines, request == TIOCMSET ? bits : request == TIOCMBIS ? lines->outputs | bits : lines->outputs & ~bits);
            return 0;
        }
    }
    return real(descriptor, request, argument);
}

int close(int descriptor) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "close");
    if (descriptor >= 0 && descriptor < 1024 && of_descriptor[descriptor]) {
        set(of_descriptor[descriptor], 0);
        of_descriptor[descriptor] = NULL;
    }
    return real(descriptor);
}
