/* A CUDA driver without a GPU, for the tests of the TensorRT runner: streams that run in threads of their own, events, graph capture,
 * accounts of everything that is allocated, a trace, and failures on request. "Device" memory is host memory; no kernel ever runs. What a
 * GPU would compute is a host function on the stream (cuLaunchHostFunc). There are three engines, as on a GPU: copies in, execution and
 * copies out; work of different streams overlaps unless it needs the same engine.
 *
 * A copy to the host fills its target with 0xFF when it is put on the stream, and with the data when it is carried out: whoever reads too
 * early reads NaN.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef int R;
typedef unsigned long long P;
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, INVALID_CONTEXT = 201, CAPTURED = 900, NOT_READY = 600, NOT_SUPPORTED = 801 };
enum { COPY_IN, EXECUTE, COPY_OUT, RECORD, ENGINES };
static const char *KINDS[] = {"copy in", "execute", "copy out", "record"};

typedef struct Event { int asked, reached; struct timespec when; } Event;
typedef struct Op { int kind; void *to; const void *from; size_t size; void (*function)(void *); void *data; Event *event; struct Op *next; } Op;
typedef struct Graph { Op *first, *last; } Graph;
typedef struct Stream { int number, ending, busy; Op *first, *last; Graph *captured; pthread_t thread; } Stream;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, engines[3] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER,
                                                                        PTHREAD_MUTEX_INITIALIZER};
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static useconds_t durations[3];
static int streams_made, lost; /* lost: the error that every call gives from now on */
static long live[6];           /* device blocks, host blocks, streams, events, graphs, retained contexts */
enum { DEVICE, HOST, STREAMS, EVENTS, GRAPHS, CONTEXTS };

/* --- trace and failures ------------------------------------------------------------------------------------------------------------ */
static char trace[1 << 22];
static size_t traced;
static int tracing, calls;
static struct { char name[64], failed[64]; int nth, code, sticky, countdown; } fault;

static void note(const char *text) {
    if (tracing && traced + strlen(text) + 2 < sizeof trace) traced += (size_t)sprintf(trace + traced, "%s\n", text);
}
void mock_trace(int on) { pthread_mutex_lock(&lock); tracing = on; traced = 0; trace[0] = 0; pthread_mutex_unlock(&lock); }
const char *mock_traced(void) { return trace; }
void mock_note(const char *text) { pthread_mutex_lock(&lock); note(text); pthread_mutex_unlock(&lock); }
void mock_forget(void) { memset(live, 0, sizeof live); }
void mock_times(int in_us, int execute_us, int out_us) { durations[0] = in_us; durations[1] = execute_us; durations[2] = out_us; }
long mock_live(int what) { return live[what]; }
int mock_calls(void) { return calls; }
const char *mock_failed(void) { return fault.failed; }
/* The nth call from now on (of that name; of any but the polled cuEventQuery, when it is empty) gives `code`; sticky: so does every later one. nth 0: no failure. */
void mock_fail(const char *name, int nth, int code, int sticky) {
    pthread_mutex_lock(&lock);
    snprintf(fault.name, sizeof fault.name, "%s", name);
    fault.countdown = fault.nth = nth; fault.code = code; fault.sticky = sticky; lost = 0; calls = 0; fault.failed[0] = 0;
    pthread_mutex_unlock(&lock);
}
static R entered(const char *name) { /* what the call gives before it does anything */
    R code = OK;
    pthread_mutex_lock(&lock);
    calls++;
    if (tracing) { char line[96]; snprintf(line, sizeof line, "call %s", name); note(line); }
    if (lost) code = lost;
    else if (fault.countdown > 0 && (fault.name[0] ? !strcmp(fault.name, name) : strcmp("cuEventQuery", name)) && --fault.countdown == 0) {
        code = fault.code;
        snprintf(fault.failed, sizeof fault.failed, "%s", name);
        if (fault.sticky) lost = code;
    }
    pthread_mutex_unlock(&lock);
    return code;
}
#define ENTER R code_ = entered(__func__); if (code_) return code_

/* --- streams ----------------------------------------------------------------------------------------------------------------------- */
static void run(Stream *stream, Op *op) {
    if (op->kind != RECORD) pthread_mutex_lock(&engines[op->kind]);
    if (tracing) { char line[64]; snprintf(line, sizeof line, "stream %d begins %s", stream->number, KINDS[op->kind]); mock_note(line); }
    int fails = lost;
    if (op->kind == EXECUTE) { /* a kernel that crashes shows when its event is asked for */
        pthread_mutex_lock(&lock);
        if (fault.countdown > 0 && !strcmp(fault.name, "kernel") && --fault.countdown == 0) fails = lost = fault.code;
        pthread_mutex_unlock(&lock);
    }
    if (op->kind < 3 && durations[op->kind]) usleep(durations[op->kind]);
    if (!fails) {
        if (op->kind == EXECUTE) op->function(op->data);
        else if (op->kind != RECORD) memmove(op->to, op->from, op->size);
    }
    if (tracing) { char line[64]; snprintf(line, sizeof line, "stream %d ends %s", stream->number, KINDS[op->kind]); mock_note(line); }
    if (op->kind != RECORD) pthread_mutex_unlock(&engines[op->kind]);
}
static void *work(void *argument) {
    Stream *stream = argument;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!stream->first && !stream->ending) pthread_cond_wait(&moved, &lock);
        if (!stream->first) break;
        Op *op = stream->first;
        stream->first = op->next;
        if (!stream->first) stream->last = 0;
        stream->busy = 1;
        pthread_mutex_unlock(&lock);
        run(stream, op);
        pthread_mutex_lock(&lock);
        stream->busy = 0;
        if (op->kind == RECORD) { op->event->reached++; clock_gettime(CLOCK_MONOTONIC, &op->event->when); }
        free(op);
        pthread_cond_broadcast(&moved);
    }
    pthread_mutex_unlock(&lock);
    free(stream);
    return 0;
}
static void append(Op **first, Op **last, const Op *op) {
    Op *copy = malloc(sizeof *copy);
    *copy = *op; copy->next = 0;
    if (*last) (*last)->next = copy; else *first = copy;
    *last = copy;
}
static R put(void *where, Op op) {
    Stream *stream = where;
    if (!stream) return INVALID; /* the legacy stream is nothing that a line should use */
    pthread_mutex_lock(&lock);
    if (stream->captured) { append(&stream->captured->first, &stream->captured->last, &op); pthread_mutex_unlock(&lock); return OK; }
    if (op.kind == COPY_OUT) memset(op.to, 0xFF, op.size);
    if (op.kind == RECORD) op.event->asked++;
    append(&stream->first, &stream->last, &op);
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
    return OK;
}
static R idle(Stream *stream) {
    if (stream->captured) return CAPTURED;
    pthread_mutex_lock(&lock);
    while (stream->first || stream->busy) pthread_cond_wait(&moved, &lock);
    pthread_mutex_unlock(&lock);
    return lost;
}
static Stream *all[256];
R cuStreamCreate(void **out, unsigned flags) {
    ENTER;
    Stream *stream = calloc(1, sizeof *stream);
    stream->number = streams_made;
    all[streams_made++ % 256] = stream;
    live[STREAMS]++;
    pthread_create(&stream->thread, 0, work, stream);
    *out = stream;
    return OK;
}
R cuStreamDestroy_v2(void *handle) {
    ENTER;
    Stream *stream = handle;
    pthread_mutex_lock(&lock);
    stream->ending = 1; /* what is on it is still carried out, as on a GPU */
    live[STREAMS]--;
    for (int i = 0; i < 256; i++) if (all[i] == stream) all[i] = 0;
    pthread_detach(stream->thread);
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
    return OK;
}
R cuStreamSynchronize(void *stream) { ENTER; return idle(stream); }
R cuStreamQuery(void *handle) { ENTER; Stream *stream = handle; return stream->first || stream->busy ? NOT_READY : lost; }
R cuStreamWaitEvent(void *stream, void *event, unsigned flags) { ENTER; return NOT_SUPPORTED; }
R cuCtxSynchronize(void) {
    ENTER;
    for (int i = 0; i < 256; i++) if (all[i]) { R code = idle(all[i]); if (code) return code; }
    return lost;
}
R cuMemcpyHtoDAsync_v2(P to, const void *from, size_t size, void *stream) {
    ENTER; return put(stream, (Op){.kind = COPY_IN, .to = (void *)to, .from = from, .size = size});
}
R cuMemcpyDtoHAsync_v2(void *to, P from, size_t size, void *stream) {
    ENTER; return put(stream, (Op){.kind = COPY_OUT, .to = to, .from = (void *)from, .size = size});
}
R cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    ENTER; return put(stream, (Op){.kind = EXECUTE, .function = function, .data = data});
}

/* --- events ------------------------------------------------------------------------------------------------------------------------ */
R cuEventCreate(void **out, unsigned flags) { ENTER; *out = calloc(1, sizeof(Event)); live[EVENTS]++; return OK; }
R cuEventDestroy_v2(void *event) { ENTER; free(event); live[EVENTS]--; return OK; }
R cuEventRecord(void *event, void *stream) { ENTER; return put(stream, (Op){.kind = RECORD, .event = event}); }
R cuEventQuery(void *handle) {
    ENTER;
    Event *event = handle;
    pthread_mutex_lock(&lock);
    R code = lost ? lost : event->reached < event->asked ? NOT_READY : OK;
    pthread_mutex_unlock(&lock);
    return code;
}
R cuEventSynchronize(void *handle) {
    ENTER;
    Event *event = handle;
    pthread_mutex_lock(&lock);
    while (event->reached < event->asked) pthread_cond_wait(&moved, &lock);
    pthread_mutex_unlock(&lock);
    return lost;
}
R cuEventElapsedTime_v2(float *ms, void *a, void *b) {
    ENTER;
    struct timespec from = ((Event *)a)->when, to = ((Event *)b)->when;
    *ms = (float)((to.tv_sec - from.tv_sec) * 1e3 + (to.tv_nsec - from.tv_nsec) * 1e-6);
    return OK;
}

/* --- graphs ------------------------------------------------------------------------------------------------------------------------ */
R cuStreamBeginCapture_v2(void *handle, int mode) {
    ENTER;
    Stream *stream = handle;
    if (stream->captured) return CAPTURED;
    stream->captured = calloc(1, sizeof(Graph));
    live[GRAPHS]++;
    return OK;
}
static Graph *copied(const Graph *graph) {
    Graph *copy = calloc(1, sizeof *copy);
    for (Op *op = graph->first; op; op = op->next) append(&copy->first, &copy->last, op);
    live[GRAPHS]++;
    return copy;
}
static void destroyed(Graph *graph) {
    for (Op *op = graph->first, *next; op; op = next) { next = op->next; free(op); }
    free(graph);
    live[GRAPHS]--;
}
R cuStreamEndCapture(void *handle, void **graph) { /* ends it also where it fails: what was captured is gone then */
    Stream *stream = handle;
    *graph = stream->captured;
    stream->captured = 0;
    R code = entered(__func__);
    if (code && *graph) { destroyed(*graph); *graph = 0; }
    return code;
}
R cuGraphInstantiateWithFlags(void **out, void *graph, P flags) { ENTER; *out = copied(graph); return OK; }
R cuGraphDestroy(void *graph) { ENTER; destroyed(graph); return OK; }
R cuGraphExecDestroy(void *graph) { ENTER; destroyed(graph); return OK; }
R cuGraphLaunch(void *graph, void *stream) {
    ENTER;
    for (Op *op = ((Graph *)graph)->first; op; op = op->next) { R code = put(stream, *op); if (code) return code; }
    return OK;
}

/* --- memory ------------------------------------------------------------------------------------------------------------------------ */
R cuMemAlloc_v2(P *out, size_t size) { ENTER; void *block = malloc(size); *out = (P)block; live[DEVICE]++; return block ? OK : NO_MEMORY; }
R cuMemFree_v2(P block) { ENTER; free((void *)block); live[DEVICE]--; return OK; }
R cuMemHostAlloc(void **out, size_t size, unsigned flags) { ENTER; *out = malloc(size); live[HOST]++; return *out ? OK : NO_MEMORY; }
R cuMemFreeHost(void *block) { ENTER; free(block); live[HOST]--; return OK; }
R cuMemGetInfo_v2(size_t *unused, size_t *total) { ENTER; *unused = (size_t)7 << 30; *total = (size_t)8 << 30; return OK; }

/* --- device and context ------------------------------------------------------------------------------------------------------------ */
static int the_context;
static __thread void *stack[64];
static __thread int depth;
R cuInit(unsigned flags) { ENTER; return OK; }
R cuDriverGetVersion(int *version) { *version = 13000; return OK; }
R cuGetErrorString(R code, const char **text) { *text = "a failure of the mock"; return OK; }
R cuGetErrorName(R code, const char **text) { *text = code == CAPTURED ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" : "CUDA_ERROR"; return OK; }
R cuDeviceGetCount(int *count) { ENTER; *count = getenv("MOCK_NO_GPU") ? 0 : 1; return OK; }
R cuDeviceGet(int *device, int index) { ENTER; *device = index; return index ? 101 : OK; }
R cuDeviceGetName(char *name, int size, int device) { ENTER; snprintf(name, (size_t)size, "mock without a GPU"); return OK; }
R cuDeviceComputeCapability(int *major, int *minor, int device) { ENTER; *major = 8; *minor = 6; return OK; }
R cuDeviceTotalMem_v2(size_t *size, int device) { ENTER; *size = (size_t)8 << 30; return OK; }
R cuDeviceGetAttribute(int *value, int attribute, int device) { ENTER; *value = 0; return OK; }
R cuDevicePrimaryCtxRetain(void **context, int device) { ENTER; *context = &the_context; live[CONTEXTS]++; return OK; }
R cuDevicePrimaryCtxRelease_v2(int device) { ENTER; live[CONTEXTS]--; return OK; }
R cuCtxPushCurrent_v2(void *context) { ENTER; if (depth == 64) return INVALID; stack[depth++] = context; return OK; }
R cuCtxPopCurrent_v2(void **context) { ENTER; if (!depth) return INVALID_CONTEXT; *context = stack[--depth]; return OK; }
R cuCtxGetApiVersion(void *context, unsigned *version) { ENTER; *version = 13000; return OK; }
R cuCtxGetDevice(int *device) { ENTER; *device = 0; return OK; }
