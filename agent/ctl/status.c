/* SPDX-License-Identifier: Apache-2.0 */
/*
 * status: the agent's own document, as it is (--json) or as tables for people, once or again and again. A
 * field that an older or newer agent does not have shows as 0 or "-".
 */
#include "agent.h"
#include "output.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static json_int_t number(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

static const char *text(const json_t *object, const char *name)
{
    const char *value = json_string_value(json_object_get(object, name));

    return value != NULL ? value : "-";
}

#define CELL_MAX 64

static const char *put_number(char cell[CELL_MAX], json_int_t value)
{
    (void)snprintf(cell, CELL_MAX, "%lld", (long long)value);
    return cell;
}

/* ---- The parts ---- */

static void print_uptime(FILE *out, json_int_t seconds)
{
    if (seconds >= 86400) {
        (void)fprintf(out, "up %lld d %lld h", (long long)(seconds / 86400), (long long)(seconds / 3600 % 24));
    } else if (seconds >= 3600) {
        (void)fprintf(out, "up %lld h %lld min", (long long)(seconds / 3600), (long long)(seconds / 60 % 60));
    } else {
        (void)fprintf(out, "up %lld min %lld s", (long long)(seconds / 60), (long long)(seconds % 60));
    }
}

/* Which store it is, and when it was backed up. */
static void print_store(FILE *out, const json_t *store)
{
    char when[32];
    long long last = (long long)number(store, "last_backup");

    if (store != NULL) {
        (void)fprintf(out, "store %.8s, %s%s\n", text(store, "id"), last > 0 ? "backed up " : "never backed up",
                     last > 0 ? output_time((uint64_t)last, when) : "");
    }
    if (number(store, "objects_to_destroy") > 0) {
        (void)fprintf(out, "%lld objects of purged keys are still in tokens that are away, or did not destroy them: see the agent's log\n",
                     (long long)number(store, "objects_to_destroy"));
    }
}

static void print_head(FILE *out, const json_t *status)
{
    const json_t *keeper = json_object_get(status, "keeper");
    const json_t *processes = json_object_get(status, "processes");
    const json_t *process = NULL;
    size_t index = 0;

    (void)fprintf(out, "keyholdd %s, ", text(status, "version"));
    print_uptime(out, number(status, "uptime_s"));
    json_array_foreach(processes, index, process)
    {
        (void)fprintf(out, "%s %s %lld", index > 0 ? "," : "; processes:", text(process, "role"),
                      (long long)number(process, "pid"));
    }
    (void)fprintf(out,
                  "\nkeeper %s, %lld workers, kernels %s; keys in memory %lld, loaded %lld, evicted %lld; "
                  "refused for usage %lld; lost %lld times\n",
                  json_is_true(json_object_get(keeper, "running")) ? "running" : "NOT RUNNING",
                  (long long)number(keeper, "workers"), text(keeper, "kernels"),
                  (long long)number(keeper, "keys_resident"), (long long)number(keeper, "keys_loaded"),
                  (long long)number(keeper, "keys_evicted"), (long long)number(keeper, "refused_usage"),
                  (long long)number(keeper, "losses"));
    print_store(out, json_object_get(keeper, "store"));
    if (number(status, "delay_ms") > 0) {
        (void)fprintf(out, "every operation is DELAYED by %lld ms (debug_delay_ms)\n",
                      (long long)number(status, "delay_ms"));
    }
}

/* "1:12 8:3": so many batches of each fill that occurred. */
static const char *put_batches(char cell[CELL_MAX], const json_t *batches)
{
    size_t used = 0;

    cell[0] = '\0';
    for (size_t fill = 1; fill <= json_array_size(batches) && used < CELL_MAX; fill++) {
        json_int_t count = json_integer_value(json_array_get(batches, fill - 1));

        if (count > 0) {
            int len = snprintf(cell + used, CELL_MAX - used, "%s%zu:%lld", used > 0 ? " " : "", fill,
                               (long long)count);

            used += len > 0 ? (size_t)len : 0;
        }
    }
    return cell[0] != '\0' ? cell : "-";
}

/* Which way the operations went: one by one through OpenSSL, or several at a time through a kernel. */
static const char *put_way(char cell[CELL_MAX], const json_t *lane)
{
    json_int_t kernel = number(lane, "by_kernel");
    json_int_t all = kernel + number(lane, "by_openssl");

    if (all == 0) {
        return "-";
    }
    (void)snprintf(cell, CELL_MAX, "%s", kernel == 0 ? "openssl" : "kernel");
    if (kernel > 0 && kernel < all) {
        (void)snprintf(cell, CELL_MAX, "kernel %lld%%", (long long)(100 * kernel / all));
    }
    return cell;
}

/* Operations per second: since the last look, else what the agent has smoothed. */
static double rate_of(const json_t *lane, const json_t *last_lane, double seconds)
{
    if (last_lane != NULL && seconds > 0 && number(lane, "operations") >= number(last_lane, "operations")) {
        return (double)(number(lane, "operations") - number(last_lane, "operations")) / seconds;
    }
    return json_number_value(json_object_get(lane, "per_second"));
}

/* The lanes in their order; those that never had an operation are left out. */
static kh_result print_lanes(FILE *out, const json_t *status, const json_t *last, double seconds)
{
    static const char *const headings[] = {"LANE",    "OPS/S", "DONE",    "ERRORS",       "EXPIRED", "BATCH",
                                           "BATCHES", "WAY",   "WAITING", "QUEUE p50 µs", "p99 µs"};
    output_table *table = output_table_new(headings, 11);
    kh_result result = KH_E_MEMORY;
    unsigned shown = 0;

    for (int i = 0; table != NULL && i < KH_LANE_COUNT; i++) {
        const json_t *lane = json_object_get(json_object_get(status, "lanes"), kh_lane_name(i));
        const json_t *last_lane = json_object_get(json_object_get(last, "lanes"), kh_lane_name(i));
        const json_t *queue = json_object_get(lane, "queue_us");
        char cells[11][CELL_MAX];

        if (number(lane, "operations") + number(lane, "waiting") + number(lane, "expired") == 0) {
            continue;
        }
        shown++;
        (void)snprintf(cells[1], CELL_MAX, "%.1f", rate_of(lane, last_lane, seconds));
        (void)snprintf(cells[5], CELL_MAX, "%.2f", json_number_value(json_object_get(lane, "mean_batch")));
        output_table_row(
            table,
            (const char *[]){
                kh_lane_name(i), cells[1], put_number(cells[2], number(lane, "operations")),
                put_number(cells[3], number(lane, "errors")), put_number(cells[4], number(lane, "expired")),
                cells[5], put_batches(cells[6], json_object_get(lane, "batches")), put_way(cells[7], lane),
                put_number(cells[8], number(lane, "waiting")), put_number(cells[9], number(queue, "p50")),
                put_number(cells[10], number(queue, "p99"))});
    }
    if (table != NULL) {
        (void)fputc('\n', out);
        result = shown > 0 ? output_table_print(table, out) : KH_OK;
    }
    output_table_free(table);
    return result;
}

static kh_result print_operations(FILE *out, const json_t *status)
{
    static const char *const headings[] = {"OPERATION", "OK", "OTHER", "p50 µs", "p99 µs", "p999 µs"};
    output_table *table = output_table_new(headings, 6);
    kh_result result = KH_E_MEMORY;
    const json_t *operation = NULL;
    const char *name = NULL;

    json_object_foreach((json_t *)json_object_get(status, "operations"), name, operation)
    {
        const json_t *results = json_object_get(operation, "results");
        const json_t *latency = json_object_get(operation, "latency_us");
        json_int_t all = 0;
        const json_t *count = NULL;
        const char *word = NULL;
        char cells[6][CELL_MAX];

        json_object_foreach((json_t *)results, word, count)
        {
            all += json_integer_value(count);
        }
        if (table == NULL) {
            break;
        }
        output_table_row(
            table, (const char *[]){name, put_number(cells[1], number(results, "ok")),
                                    put_number(cells[2], all - number(results, "ok")),
                                    latency != NULL ? put_number(cells[3], number(latency, "p50")) : "-",
                                    latency != NULL ? put_number(cells[4], number(latency, "p99")) : "-",
                                    latency != NULL ? put_number(cells[5], number(latency, "p999")) : "-"});
    }
    if (table != NULL) {
        (void)fputc('\n', out);
        result = output_table_print(table, out);
    }
    output_table_free(table);
    return result;
}

static kh_result print_identities(FILE *out, const json_t *status)
{
    static const char *const headings[] = {"CALLER", "CONNECTIONS", "REQUESTS", "DONE", "REFUSED", "WAITING"};
    output_table *table = output_table_new(headings, 6);
    kh_result result = KH_E_MEMORY;
    const json_t *identity = NULL;
    size_t index = 0;

    json_array_foreach(json_object_get(status, "identities"), index, identity)
    {
        char cells[6][CELL_MAX];

        if (table == NULL) {
            break;
        }
        output_table_row(table, (const char *[]){text(identity, "name"),
                                                 put_number(cells[1], number(identity, "connections")),
                                                 put_number(cells[2], number(identity, "requests")),
                                                 put_number(cells[3], number(identity, "completed")),
                                                 put_number(cells[4], number(identity, "refused")),
                                                 put_number(cells[5], number(identity, "waiting"))});
    }
    if (table != NULL) {
        (void)fputc('\n', out);
        result = output_table_print(table, out);
    }
    output_table_free(table);
    return result;
}

/* A table of what is at `key` of the status; nothing when there is none. */
static kh_result print_table(FILE *out, const json_t *status, const char *key, const char *const headings[],
                             unsigned columns, void (*row)(output_table *table, const json_t *one))
{
    const json_t *all = json_object_get(status, key), *one = NULL;
    output_table *table = NULL;
    kh_result result = KH_E_MEMORY;
    size_t index = 0;

    if (json_array_size(all) == 0) {
        return KH_OK;
    }
    table = output_table_new(headings, columns);
    if (table != NULL) {
        json_array_foreach(all, index, one)
        {
            row(table, one);
        }
        (void)fputc('\n', out);
        result = output_table_print(table, out);
    }
    output_table_free(table);
    return result;
}

static void token_row(output_table *table, const json_t *token)
{
    const json_t *took = json_object_get(token, "took_us");
    char cells[9][CELL_MAX];

    output_table_row(table, (const char *[]){text(token, "name"), text(token, "state"),
                                             put_number(cells[2], number(token, "sessions")),
                                             put_number(cells[3], number(token, "operations")),
                                             put_number(cells[4], number(token, "failed")),
                                             put_number(cells[5], number(token, "losses")),
                                             put_number(cells[6], number(token, "in_ring")),
                                             put_number(cells[7], number(took, "p50")),
                                             put_number(cells[8], number(took, "p99"))});
}

static void pool_row(output_table *table, const json_t *pool)
{
    const json_t *partitions = json_object_get(pool, "partitions"), *partition = NULL;
    char list[CELL_MAX] = "", cells[5][CELL_MAX];
    size_t index = 0, used = 0, up = 0;

    json_array_foreach(partitions, index, partition)
    {
        const char *state = text(partition, "state");
        int len = 0;

        if (strcmp(state, "up") == 0) {
            up++;
            continue;
        }
        len = used < CELL_MAX ? snprintf(list + used, CELL_MAX - used, "%s%s %s", used > 0 ? ", " : "",
                                         text(partition, "token"), state)
                              : 0;
        used += len > 0 ? (size_t)len : 0;
    }
    (void)snprintf(cells[0], CELL_MAX, "%zu of %zu", up, json_array_size(partitions));
    output_table_row(table, (const char *[]){text(pool, "name"), cells[0], list[0] != '\0' ? list : "-",
                                             put_number(cells[1], number(pool, "operations")),
                                             put_number(cells[2], number(pool, "moved")),
                                             put_number(cells[3], number(pool, "in_ring")),
                                             put_number(cells[4], number(pool, "waiting"))});
}

static kh_result print_places(FILE *out, const json_t *status)
{
    static const char *const tokens[] = {"TOKEN", "STATE", "SESSIONS", "DONE", "FAILED", "LOST", "IN RING", "p50 µs", "p99 µs"};
    static const char *const pools[] = {"POOL", "UP", "NOT UP", "DONE", "MOVED", "IN RING", "WAITING"};
    kh_result result = print_table(out, status, "tokens", tokens, 9, token_row);

    return result == KH_OK ? print_table(out, status, "pools", pools, 7, pool_row) : result;
}

static void print_tail(FILE *out, const json_t *status)
{
    const json_t *queues = json_object_get(status, "queues");
    const json_t *connections = json_object_get(status, "connections");

    (void)fprintf(
        out,
        "\nqueues: %lld waiting of at most %lld\n"
        "connections: %lld open of at most %lld, %lld accepted; refused: %lld full, %lld not known; closed: "
        "%lld idle, "
        "%lld silent, %lld stalled, %lld for a protocol error\n",
        (long long)number(queues, "waiting"), (long long)number(queues, "most"),
        (long long)number(connections, "open"), (long long)number(connections, "most"),
        (long long)number(connections, "accepted"), (long long)number(connections, "refused_full"),
        (long long)number(connections, "refused_auth"), (long long)number(connections, "closed_idle"),
        (long long)number(connections, "closed_silent"), (long long)number(connections, "closed_stalled"),
        (long long)number(connections, "closed_protocol"));
}

static kh_result print_status(FILE *out, const json_t *status, const json_t *last, double seconds)
{
    kh_result result = KH_OK;

    print_head(out, status);
    result = print_lanes(out, status, last, seconds);
    if (result == KH_OK) {
        result = print_places(out, status);
    }
    if (result == KH_OK) {
        result = print_operations(out, status);
    }
    if (result == KH_OK) {
        result = print_identities(out, status);
    }
    print_tail(out, status);
    return result;
}

/* ---- The command ---- */

/* Asks once; *status is a new reference. The agent is opened when it is not, and closed when it does not
 * answer. */
static kh_result fetch(ctl_run *ctl, ctl_agent **agent, json_t **status)
{
    kh_request request = {.op = KH_OP_STATUS};
    kh_reply reply = {0};
    kh_result result = KH_OK;

    *status = NULL;
    if (*agent == NULL) {
        result = ctl_agent_open(ctl, CTL_WAY_WIRE, agent);
    }
    if (result == KH_OK) {
        result = ctl_agent_wire(*agent, &request, "cannot fetch the status", &reply);
    }
    if (result == KH_OK) {
        *status = json_loadb((const char *)reply.data.data, reply.data.len, 0, NULL);
        if (*status == NULL) {
            result = ctl_fail(&ctl->error, KH_E_MALFORMED, "the agent's status is not JSON; see its log");
        }
    }
    if (result != KH_OK) {
        ctl_agent_close(*agent);
        *agent = NULL;
    }
    return result;
}

static void on_resize(int number)
{
    (void)number; /* it ends the sleep */
}

/* A picture in the place of the one before, cut to what the terminal shows. */
static void paint(const char *picture)
{
    struct winsize size = {.ws_row = 24, .ws_col = 80};
    const char *line = picture;

    (void)ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
    (void)fputs("\033[H\033[2J", stdout);
    for (unsigned row = 1; *line != '\0' && (row < size.ws_row || size.ws_row == 0); row++) {
        size_t len = strcspn(line, "\n"), shown = 0;

        for (unsigned column = 0; shown < len && (column < size.ws_col || size.ws_col == 0); column++) {
            do {
                shown++;
            } while (shown < len && ((unsigned char)line[shown] & 0xc0) == 0x80); /* the rest of a character */
        }
        (void)printf("%.*s\n", (int)shown, line);
        line += len + (line[len] == '\n');
    }
    (void)fflush(stdout);
}

/* One picture of what the agent says, or of why it says nothing; to be freed. NULL: out of memory. */
static char *draw(const ctl_run *ctl, const json_t *status, const json_t *last, double seconds)
{
    char *picture = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&picture, &len);
    kh_result result = KH_E_MEMORY;

    if (out == NULL) {
        return NULL;
    }
    if (status == NULL) {
        result = fprintf(out, "%s\n", ctl->error.text) > 0 ? KH_OK : KH_E_MEMORY;
    } else if (ctl->json) {
        result = json_dumpf(status, out, JSON_COMPACT | JSON_PRESERVE_ORDER) == 0 ? KH_OK : KH_E_MEMORY;
        (void)fputc('\n', out);
    } else {
        result = print_status(out, status, last, seconds);
    }
    if (fclose(out) != 0 || result != KH_OK) {
        free(picture);
        picture = NULL;
    }
    return picture;
}

/* Until somebody ends it: an agent that restarts meanwhile is waited for. */
static kh_result watch(ctl_run *ctl, unsigned interval_s)
{
    const struct sigaction resized = {.sa_handler = on_resize};
    bool terminal = isatty(STDOUT_FILENO) && !ctl->json;
    ctl_agent *agent = NULL;
    json_t *last = NULL;
    struct timespec before = {0, 0};
    kh_result result = KH_OK;

    (void)sigaction(SIGWINCH, &resized, NULL);
    while (!ferror(stdout)) {
        struct timespec now;
        json_t *status = NULL;
        char *picture = NULL;

        result = fetch(ctl, &agent, &status);
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        if (result != KH_OK && ctl->error.exit_code != CTL_UNREACHABLE) {
            break;
        }
        picture = draw(ctl, status, last,
                       (double)(now.tv_sec - before.tv_sec) + (double)(now.tv_nsec - before.tv_nsec) / 1e9);
        if (terminal) {
            paint(picture != NULL ? picture : "out of memory\n");
        } else {
            (void)printf("%s%s", picture != NULL ? picture : "", ctl->json ? "" : "\n");
            (void)fflush(stdout);
        }
        free(picture);
        json_decref(last);
        last = status;
        before = now;
        (void)sleep(interval_s);
    }
    json_decref(last);
    ctl_agent_close(agent);
    return result;
}

kh_result ctl_cmd_status(ctl_run *ctl)
{
    const char *watching = ctl_args_value(&ctl->args, "watch");
    ctl_agent *agent = NULL;
    json_t *status = NULL;
    long interval_s = 2;
    kh_result result = KH_OK;

    if (watching != NULL) {
        if (watching[0] != '\0') {
            result = ctl_args_number(&ctl->args, "watch", 1, 86400, 2, &interval_s, &ctl->error);
        }
        return result == KH_OK ? watch(ctl, (unsigned)interval_s) : result;
    }
    result = fetch(ctl, &agent, &status);
    ctl_agent_close(agent);
    if (result != KH_OK) {
        return result;
    }
    if (ctl->json) {
        return output_json(status, &ctl->error);
    }
    result = print_status(stdout, status, NULL, 0);
    json_decref(status);
    return result == KH_OK ? KH_OK : ctl_fail(&ctl->error, result, "cannot print the status: out of memory");
}
