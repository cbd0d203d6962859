/* A serial cable: joins two pseudo terminals at the speed of a baud rate. paced_wire LINK LINK BAUD; it ends with its standard input.
   Lines on standard input: "cut" lets nothing through any more, "join" does again. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define BITS 10 /* start, 8 data, stop */
#define ROOM 4096

struct direction { int from, to; unsigned char bytes[ROOM]; int held; double free_at; };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int end_of_cable(const char *link) {
    struct termios raw;
    int near = posix_openpt(O_RDWR | O_NOCTTY), far;
    if (near < 0 || grantpt(near) || unlockpt(near)) exit(1);
    far = open(ptsname(near), O_RDWR | O_NOCTTY); /* held, or a read fails while nobody else has it */
    tcgetattr(far, &raw);
    cfmakeraw(&raw);
    tcsetattr(far, TCSANOW, &raw);
    unlink(link);
    if (symlink(ptsname(near), link)) exit(1);
    fcntl(near, F_SETFL, O_NONBLOCK);
    return near;
}

int main(int count, char **words) {
    double byte;
    int cut = 0;
    char line[64];
    if (count != 4) return 2;
    byte = BITS / atof(words[3]);
    int a = end_of_cable(words[1]), b = end_of_cable(words[2]);
    struct direction ways[2] = {{.from = a, .to = b}, {.from = b, .to = a}};
    fcntl(0, F_SETFL, O_NONBLOCK);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd ready[3] = {{0, POLLIN, 0}, {a, POLLIN, 0}, {b, POLLIN, 0}};
        int busy = ways[0].held + ways[1].held;
        struct timespec wait = {0, busy ? 200000 : 50000000};
        ppoll(ready, 3, &wait, NULL);
        if (ready[0].revents) {
            ssize_t n = read(0, line, sizeof line - 1);
            if (n == 0) return 0;
            if (n > 0) line[n] = 0, cut = strstr(line, "join") ? 0 : strstr(line, "cut") ? 1 : cut;
        }
        for (int i = 0; i < 2; i++) {
            struct direction *way = &ways[i];
            double t = now();
            int empty = way->held == 0;
            ssize_t n = read(way->from, way->bytes + way->held, ROOM - way->held);
            if (n > 0) way->held += n;
            if (empty && n > 0 && way->free_at < t) way->free_at = t;
            int through = (t - way->free_at) / byte;
            if (through > way->held) through = way->held;
            if (through > 0) {
                if (!cut && write(way->to, way->bytes, through) < through) perror("paced_wire");
                memmove(way->bytes, way->bytes + through, way->held -= through);
                way->free_at += through * byte;
            }
        }
    }
}
