/* A PLC on libmodbus with the register map of docs/plc-modbus.md. modbus_plc PORT UNIT SESSION; it ends with its standard input.
   Lines on standard input, a word and numbers:
     trigger PART        a part stands before the camera          confirm PART  it was seen to leave
     encoder N, belt 0|1, clear, freeze 0|1 (the heartbeat), version N
     session N           the PLC starts anew
     lose N              the next N writes are executed, but not answered
     miss N              the next N writes do not arrive
     late MS             an answer to a write that comes MS late, once; stale MS: one to a read
     deaf 0|1            nothing is heard
   Lines on standard output, with the PLC's clock in ms: what the line commands, each time it is executed, and what the line says of itself. */
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <time.h>
#include <unistd.h>

enum { VERSION, SESSION, HEARTBEAT, FLAGS, CLEARS, CLOCK, ENCODER = CLOCK + 2, EXECUTED = ENCODER + 2, RESULT, TRIGGERS, CONFIRMS, TRIGGER_RING,
       CONFIRM_RING = TRIGGER_RING + 8 * 7, FROM_END = CONFIRM_RING + 8 * 3 };
enum { LINE = 100, LINE_HEARTBEAT = LINE, STATE, SESSION_SEEN, TRIGGERS_TAKEN, CONFIRMS_TAKEN, REFUSED, TYPE, CODE, PART, VALUE = PART + 2,
       TIME = VALUE + 2, SEQUENCE = TIME + 2, LINE_END };

static uint16_t *r;
static double began;
static int frozen, deaf, lose, miss, late, stale, last_sequence;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static unsigned clock_ms(void) { return (unsigned)((now() - began) * 1000) + 0xFFFFF000u; /* it wraps after 4 s */ }
static void put(int at, unsigned value) { r[at] = value >> 16, r[at + 1] = value & 0xFFFF; }
static unsigned get(int at) { return (unsigned)r[at] << 16 | r[at + 1]; }

static void start(int session) {
    memset(r, 0, 256 * sizeof *r);
    began = now();
    last_sequence = 0;
    r[VERSION] = 1, r[SESSION] = session, r[FLAGS] = 1;
    put(CLOCK, clock_ms());
}

static void execute(void) {
    static const char *names[] = {"?", "verdict", "reject", "fault"};
    if (r[SEQUENCE] == last_sequence) return;
    last_sequence = r[SEQUENCE];
    printf("%u %s part %u code %u value %d time %u sequence %u\n", clock_ms(), names[r[TYPE] < 4 ? r[TYPE] : 0], get(PART), r[CODE],
           (int)get(VALUE), get(TIME), r[SEQUENCE]);
    r[RESULT] = 0;
    if (r[TYPE] == 2 && r[CODE] == 0 && (int)(get(TIME) - clock_ms()) < 0) r[RESULT] = 2; /* too late */
    r[EXECUTED] = last_sequence;
}

static void look(void) {
    static uint16_t seen[4];
    static int beat;
    if (memcmp(seen, r + STATE, sizeof seen)) {
        memcpy(seen, r + STATE, sizeof seen);
        printf("%u state %u session %u taken %u confirms %u\n", clock_ms(), r[STATE], r[SESSION_SEEN], r[TRIGGERS_TAKEN], r[CONFIRMS_TAKEN]);
    }
    if (beat != r[LINE_HEARTBEAT]) printf("%u beat %u\n", clock_ms(), beat = r[LINE_HEARTBEAT]);
    put(CLOCK, clock_ms());
    if (!frozen) r[HEARTBEAT] = (uint16_t)(clock_ms() / 50);
    execute();
    fflush(stdout);
}

static void obey(const char *word, unsigned number) {
    int at;
    if (!strcmp(word, "trigger")) {
        at = TRIGGER_RING + r[TRIGGERS] % 8 * 7;
        r[at] = ++r[TRIGGERS];
        put(at + 1, number), put(at + 3, clock_ms()), put(at + 5, get(ENCODER));
        printf("%u trigger part %u\n", clock_ms(), number);
    } else if (!strcmp(word, "confirm")) {
        at = CONFIRM_RING + r[CONFIRMS] % 8 * 3;
        r[at] = ++r[CONFIRMS];
        put(at + 1, number);
    } else if (!strcmp(word, "encoder")) put(ENCODER, number), r[FLAGS] |= 2;
    else if (!strcmp(word, "belt")) r[FLAGS] = (r[FLAGS] & 2) | number;
    else if (!strcmp(word, "clear")) r[CLEARS]++;
    else if (!strcmp(word, "freeze")) frozen = number;
    else if (!strcmp(word, "version")) r[VERSION] = number;
    else if (!strcmp(word, "session")) start(number);
    else if (!strcmp(word, "lose")) lose = number;
    else if (!strcmp(word, "miss")) miss = number;
    else if (!strcmp(word, "late")) late = number;
    else if (!strcmp(word, "stale")) stale = number;
    else if (!strcmp(word, "deaf")) deaf = number;
    else fprintf(stderr, "modbus_plc: %s?\n", word);
    fflush(stdout);
}

static void answer(modbus_t *bus, modbus_mapping_t *map) {
    uint8_t request[MODBUS_RTU_MAX_ADU_LENGTH];
    int length = modbus_receive(bus, request), write;
    if (length < 0) {
        modbus_flush(bus);
        return;
    }
    if (length == 0 || deaf) return; /* 0: for another unit */
    write = request[1] == 16;
    look();
    if (write && miss && miss--) return;
    if (write && lose && lose--) { /* done, and not said: the answer goes to nobody */
        modbus_t *nobody = modbus_new_rtu("/dev/null", 115200, 'N', 8, 1);
        modbus_set_slave(nobody, request[0]);
        modbus_reply(nobody, request, length, map);
        modbus_free(nobody);
    } else {
        int *wait = write ? &late : &stale;
        if (*wait && !write) { /* what it said then comes late */
            uint16_t *old = malloc(256 * sizeof *old), *current = map->tab_registers;
            memcpy(old, r, 256 * sizeof *old);
            usleep(1000 * *wait);
            map->tab_registers = old;
            modbus_reply(bus, request, length, map);
            map->tab_registers = current;
            free(old);
        } else {
            if (*wait) usleep(1000 * *wait);
            modbus_reply(bus, request, length, map);
        }
        *wait = 0;
    }
    look();
}

int main(int count, char **words) {
    modbus_t *bus;
    modbus_mapping_t *map;
    char line[256];
    size_t held = 0;
    if (count != 4) return 2;
    bus = modbus_new_rtu(words[1], 115200, 'N', 8, 1);
    modbus_set_slave(bus, atoi(words[2]));
    modbus_set_byte_timeout(bus, 0, 20000);
    map = modbus_mapping_new(0, 0, 256, 0);
    if (!map || modbus_connect(bus)) {
        perror("modbus_plc");
        return 1;
    }
    r = map->tab_registers;
    start(atoi(words[3]));
    puts("ready");
    fflush(stdout);
    for (;;) {
        fd_set ready;
        struct timeval wait = {0, 1000};
        int bus_fd = modbus_get_socket(bus);
        FD_ZERO(&ready);
        FD_SET(0, &ready);
        FD_SET(bus_fd, &ready);
        select(bus_fd + 1, &ready, NULL, NULL, &wait);
        if (FD_ISSET(0, &ready)) {
            ssize_t n = read(0, line + held, sizeof line - 1 - held);
            if (n <= 0) return 0;
            line[held += n] = 0;
            for (char *end; (end = strchr(line, '\n'));) {
                char word[32];
                unsigned number = 0;
                if (sscanf(line, "%31s %u", word, &number) > 0) obey(word, number);
                held -= end + 1 - line;
                memmove(line, end + 1, held + 1);
            }
        }
        if (FD_ISSET(bus_fd, &ready)) answer(bus, map);
        look();
    }
}
