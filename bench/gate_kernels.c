/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gate's measurements of the batch kernels: each alternation is one run of `keyhold-bench kernels`, which
 * itself alternates with OpenSSL; all rows read the same runs.
 */
#include "gate.h"

#include <stdio.h>
#include <string.h>

#define SECONDS "0.25" /* for each kernel and fill */

/* The report of that alternation, run when it is asked for first; borrowed. */
static const json_t *run_number(gate *g, size_t number)
{
    char program[PATH_MAX + 32], file[PATH_MAX + 32];
    const char *argv[] = {program, "kernels", "--json", "--seconds", SECONDS, NULL};
    json_t *report = NULL;

    if (g->kernels == NULL && (g->kernels = json_array()) == NULL) {
        return NULL;
    }
    while (json_array_size(g->kernels) <= number) {
        snprintf(program, sizeof(program), "%s/bench/keyhold-bench", g->build_dir);
        snprintf(file, sizeof(file), "%s/kernels.json", g->dir);
        remove(file); /* gate_run adds to what is there, as logs want it */
        if (gate_run(argv, file) != 0 || (report = json_load_file(file, 0, NULL)) == NULL) {
            fprintf(stderr, "gate: keyhold-bench kernels fails\n");
            gate_show(file);
            return NULL;
        }
        if (json_array_size(report) == 0) {
            fprintf(stderr, "gate: this CPU has no AVX-512 IFMA: there are no kernels to measure\n");
        }
        json_array_append_new(g->kernels, report);
    }
    return json_array_get(g->kernels, number);
}

static bool figure(const json_t *report, const char *kernel, int fill, const char *name, double *value)
{
    const json_t *row = NULL;
    size_t i = 0;

    json_array_foreach(report, i, row)
    {
        if (strcmp(json_string_value(json_object_get(row, "kernel")), kernel) == 0 &&
            json_integer_value(json_object_get(row, "fill")) == fill) {
            *value = json_number_value(json_object_get(row, name));
            return true;
        }
    }
    return false;
}

bool gate_kernel_ratio(gate *g, const gate_row *row, size_t alternation, double *value)
{
    const json_t *report = run_number(g, alternation);

    return report != NULL && figure(report, row->with, 8, "ratio", value);
}

bool gate_kernel_half(gate *g, const gate_row *row, size_t alternation, double *value)
{
    const json_t *report = run_number(g, alternation);
    double four = 0, eight = 0;

    if (report == NULL || !figure(report, row->with, 4, "ratio", &four) ||
        !figure(report, row->with, 8, "ratio", &eight) || eight <= 0) {
        return false;
    }
    *value = four / eight;
    return true;
}
