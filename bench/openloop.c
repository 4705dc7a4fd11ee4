/* Requests at a fixed rate, whether or not the server keeps up; latency counted from when each request was due.
 *
 *     openloop PORT PATH RATE WARMUP_SECONDS SECONDS CONNECTIONS SEED [HEADER: VALUE]...
 *
 * A closed-loop generator (wrk, ab, hey) waits for an answer before it sends the next request, so a server that stalls is
 * asked less while it stalls and its worst moments hardly show: coordinated omission. Here the schedule is drawn beforehand,
 * with exponential gaps as independent visitors make them, from a seed, so that every server is asked at the same moments. A
 * request that is due while every connection is busy waits its turn, and the wait is part of its latency.
 *
 * HTTP/1.1 with keep-alive over TCP to 127.0.0.1, GET only, answers with Content-Length only. Prints one line of JSON; times in
 * it are microseconds. `dispatch_*` is how late this program itself noticed that a request was due: its own error. `lost` were
 * never answered, or with something else than 200. Exit status 1 and a message when it cannot measure at all.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 16384, EVENTS = 256 };
static const int64_t SECOND = 1000000000;
static const int64_t GRACE = 2 * SECOND; /* for what is still unanswered at the end */

struct connection {
    int fd;
    int64_t due;   /* of the request that it carries; 0: idle */
    int64_t left;  /* body bytes still to come; -1: still in the head */
    size_t filled; /* bytes of the head so far */
    char head[HEAD_BYTES];
};

static struct sockaddr_in server;
static char request[HEAD_BYTES];
static size_t request_size;
static int poller;
static struct connection *connections;
static struct connection **idle;
static int idle_count;
static int64_t *waiting; /* due times of requests that found no idle connection, in order */
static size_t waiting_first, waiting_end, capacity;
static int64_t *latencies, *dispatches;
static size_t answered, dispatched, lost;
static int64_t counted_from;

static void die(const char *what) {
    fprintf(stderr, "openloop: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void open_connection(struct connection *it) {
    it->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (it->fd < 0 || connect(it->fd, (struct sockaddr *)&server, sizeof server) < 0) die("connect");
    int on = 1;
    setsockopt(it->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = it};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, it->fd, &event) < 0) die("epoll_ctl");
    it->due = 0;
    idle[idle_count++] = it;
}

static void reopen(struct connection *it) {
    if (it->due) {
        if (it->due >= counted_from) lost++;
    } else {
        for (int i = 0; i < idle_count; i++)
            if (idle[i] == it) idle[i] = idle[--idle_count];
    }
    close(it->fd);
    open_connection(it);
}

static void send_on(struct connection *it, int64_t due) {
    it->due = due;
    it->left = -1;
    it->filled = 0;
    ssize_t sent = send(it->fd, request, request_size, MSG_NOSIGNAL);
    if (sent != (ssize_t)request_size) reopen(it); /* closed under our hands: counted as lost */
}

static void dispatch(int64_t due, int64_t time) {
    if (due >= counted_from) dispatches[dispatched++] = time - due;
    if (idle_count) {
        send_on(idle[--idle_count], due);
    } else {
        waiting[waiting_end++] = due;
    }
}

static void complete(struct connection *it) {
    if (it->due >= counted_from) latencies[answered++] = now() - it->due;
    it->due = 0;
    if (waiting_first < waiting_end) {
        send_on(it, waiting[waiting_first++]);
    } else {
        idle[idle_count++] = it;
    }
}

/* The head is complete, `extra` bytes of body came with it. Returns 0 when the answer is not one to count. */
static int read_head(struct connection *it, size_t extra) {
    const char *length = strcasestr(it->head, "\r\nContent-Length:");
    if (strncmp(it->head, "HTTP/1.1 200", 12) != 0 || length == NULL) return 0;
    it->left = strtoll(length + 17, NULL, 10) - (int64_t)extra;
    return it->left >= 0;
}

static void readable(struct connection *it) {
    char body[65536];
    int in_head = it->due && it->left < 0;
    char *into = in_head ? it->head + it->filled : body;
    size_t room = in_head ? HEAD_BYTES - 1 - it->filled : sizeof body;
    ssize_t got = recv(it->fd, into, room, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0 || !it->due) {
        reopen(it);
        return;
    }
    if (in_head) {
        it->filled += (size_t)got;
        it->head[it->filled] = 0;
        char *end = strstr(it->head, "\r\n\r\n");
        if (end == NULL) {
            if (it->filled == HEAD_BYTES - 1) reopen(it);
            return;
        }
        size_t extra = it->filled - (size_t)(end + 4 - it->head);
        end[2] = 0;
        if (!read_head(it, extra)) {
            reopen(it);
            return;
        }
    } else {
        it->left -= got;
    }
    if (it->left == 0) complete(it);
}

static double exponential(uint64_t *state, double mean) {
    *state ^= *state << 13; /* xorshift64 */
    *state ^= *state >> 7;
    *state ^= *state << 17;
    double uniform = ((double)(*state >> 11) + 0.5) / 9007199254740992.0;
    return -log(uniform) * mean;
}

static int ascending(const void *one, const void *other) {
    int64_t a = *(const int64_t *)one, b = *(const int64_t *)other;
    return (a > b) - (a < b);
}

static double at(const int64_t *sorted, size_t count, double share) {
    size_t rank = (size_t)ceil(share * (double)count);
    return count ? (double)sorted[rank ? rank - 1 : 0] / 1000 : 0;
}

static void run(double rate, double warmup, double seconds, uint64_t seed) {
    int64_t start = now() + SECOND / 20, end = start + (int64_t)((warmup + seconds) * (double)SECOND);
    counted_from = start + (int64_t)(warmup * (double)SECOND);
    double due = (double)start;
    struct epoll_event events[EVENTS];
    for (;;) {
        int64_t time = now();
        while (due < (double)end && (int64_t)due <= time && waiting_end + 1 < capacity) {
            dispatch((int64_t)due, time);
            due += exponential(&seed, (double)SECOND / rate);
        }
        int over = due >= (double)end;
        if (over && (time > end + GRACE || (waiting_first == waiting_end && answered + lost >= dispatched))) return;
        int64_t pause = over ? SECOND / 100 : (int64_t)due - time;
        struct timespec wait = {.tv_sec = pause > 0 ? pause / SECOND : 0, .tv_nsec = pause > 0 ? pause % SECOND : 0};
        int count = epoll_pwait2(poller, events, EVENTS, &wait, NULL);
        if (count < 0 && errno != EINTR) die("epoll_pwait2");
        for (int i = 0; i < count; i++) readable(events[i].data.ptr);
    }
}

static void compose(int argc, char **argv) {
    request_size = (size_t)snprintf(request, sizeof request, "GET %s HTTP/1.1\r\n", argv[2]);
    for (int i = 8; i <= argc && request_size < sizeof request; i++)
        request_size += (size_t)snprintf(request + request_size, sizeof request - request_size, "%s\r\n", i < argc ? argv[i] : "");
    if (request_size >= sizeof request) {
        errno = E2BIG;
        die("request");
    }
}

int main(int argc, char **argv) {
    if (argc < 8) {
        fprintf(stderr, "usage: openloop PORT PATH RATE WARMUP_SECONDS SECONDS CONNECTIONS SEED [HEADER: VALUE]...\n");
        return 1;
    }
    double rate = atof(argv[3]), warmup = atof(argv[4]), seconds = atof(argv[5]);
    int count = atoi(argv[6]);
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    compose(argc, argv);
    prctl(PR_SET_TIMERSLACK, 1UL); /* the default lets every wake-up be 50 us late */
    capacity = (size_t)(rate * (warmup + seconds) * 1.2) + 10000;
    connections = calloc((size_t)count, sizeof *connections);
    idle = calloc((size_t)count, sizeof(void *));
    waiting = malloc(capacity * sizeof *waiting);
    latencies = malloc(capacity * sizeof *latencies);
    dispatches = malloc(capacity * sizeof *dispatches);
    if (!connections || !idle || !waiting || !latencies || !dispatches) die("memory");
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0) die("epoll_create1");
    for (int i = 0; i < count; i++) open_connection(&connections[i]);
    run(rate, warmup, seconds, strtoull(argv[7], NULL, 10) | 1);
    lost = dispatched - answered;
    qsort(latencies, answered, sizeof *latencies, ascending);
    qsort(dispatches, dispatched, sizeof *dispatches, ascending);
    printf("{\"requests\": %zu, \"lost\": %zu, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f, "
           "\"dispatch_p50\": %.1f, \"dispatch_p99\": %.1f, \"dispatch_p999\": %.1f}\n",
           dispatched, lost, at(latencies, answered, 0.5), at(latencies, answered, 0.9), at(latencies, answered, 0.99),
           at(latencies, answered, 0.999), at(latencies, answered, 1), at(dispatches, dispatched, 0.5),
           at(dispatches, dispatched, 0.99), at(dispatches, dispatched, 0.999));
    return 0;
}
