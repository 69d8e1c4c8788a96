/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kek rotate for a store under a passphrase. keyholdctl makes the keys of the passphrases itself (scrypt takes 128 MB, which the
 * keeper's locked memory is not for); the keeper says how the one of now is made, and never sees a passphrase.
 *
 * Where the agent has the passphrase from a file, that is exchanged, as a key file is. Where it has it from its terminal or from a
 * credential, only its next start can give it the new one: until then both open the store, and the first start with the new
 * one leaves only that (kh_meta_settle).
 */
#include "kekrotate.h"
#include "passphrase.h"
#include "secret.h"

#include <kek.h>
#include <openssl/crypto.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char what[] = "cannot change the passphrase";

typedef struct phrases {
    ctl_run *ctl;
    ctl_agent *agent;
    const char *source;    /* kek_passphrase_file */
    bool from_file;        /* which is one that can be exchanged */
    kek_place place;       /* then */
    uint8_t recipes[2][KH_KEK_RECIPE_LEN];
    bool begun;            /* an earlier change was not ended: there are two recipes */
    ctl_secret now, next;  /* the passphrases */
    ctl_secret keys;       /* a kh_kek_change */
    kh_kek_change *change; /* in there */
} phrases;

static kh_result take_arguments(phrases *p)
{
    ctl_run *ctl = p->ctl;

    if (ctl_args_value(&ctl->args, "in-token") != NULL) {
        return ctl_fail_usage(&ctl->error, "%s: the store is sealed under a passphrase, and --in-token is for one with a kek_file", what);
    }
    p->from_file = strcmp(p->source, "-") != 0 && strncmp(p->source, "credential:", 11) != 0;
    if (p->from_file && ctl_args_value(&ctl->args, "passphrase-file") != NULL) {
        return ctl_fail_usage(&ctl->error, "%s: the passphrase of now is in %s (kek_passphrase_file); say it without --passphrase-file",
                              what, p->source);
    }
    return p->from_file ? kek_place_name(ctl, p->source, &p->place) : KH_OK;
}

static kh_result take_recipes(phrases *p)
{
    const kh_record record = {.op = KH_STORE_KEK};
    size_t len = 0;
    kh_result result = ctl_agent_admin(p->agent, &record, what, (uint8_t *)p->recipes, sizeof(p->recipes), &len);

    p->begun = len == sizeof(p->recipes);
    if (result == KH_OK && (len < KH_KEK_RECIPE_LEN || p->recipes[0][0] != KH_KEK_PASSPHRASE)) {
        result = ctl_fail(&p->ctl->error, KH_E_UNSUPPORTED,
                          "%s: the agent's store is sealed under a key file, and this configuration names a passphrase; give the "
                          "agent's with --config",
                          what);
    }
    return result;
}

static kh_result refuse_readable(phrases *p, const char *path)
{
    struct stat status;

    return path != NULL && stat(path, &status) == 0 && (status.st_mode & 077) != 0
               ? ctl_fail(&p->ctl->error, KH_E_FORBIDDEN, "%s: %s can be read by others; chmod 0600 it", what, path)
               : KH_OK;
}

static kh_result take_phrases(phrases *p)
{
    ctl_error *error = &p->ctl->error;
    const ctl_passphrase_source now = {.file = p->from_file ? p->source : ctl_args_value(&p->ctl->args, "passphrase-file"),
                                       .prompt = "Passphrase of the store, as it is now"};
    const ctl_passphrase_source next = {.file = ctl_args_value(&p->ctl->args, "new-passphrase-file"),
                                        .prompt = "New passphrase of the store",
                                        .option = "--new-passphrase-file",
                                        .twice = true};
    const char *fault = NULL;
    kh_result result = refuse_readable(p, next.file);

    if (result != KH_OK || (result = ctl_secret_passphrase(&now, &p->now, error)) != KH_OK ||
        (result = ctl_secret_passphrase(&next, &p->next, error)) != KH_OK) {
        return result;
    }
    if (p->next.len == p->now.len && CRYPTO_memcmp(p->next.data, p->now.data, p->now.len) == 0) {
        return ctl_fail(error, KH_E_PASSPHRASE, "%s: the new passphrase is the one of now; choose another one", what);
    }
    fault = ctl_passphrase_fault(p->next.data, p->next.len);
    return fault == NULL ? KH_OK
                         : ctl_fail(error, KH_E_WEAK, "%s: the new passphrase %s; choose another one, of five or six words or so",
                                    what, fault);
}

static kh_result derive(phrases *p, const ctl_secret *phrase, const uint8_t *recipe, uint8_t *kek)
{
    kh_result result = kh_kek_derive(KH_KEK_PASSPHRASE, phrase->data, phrase->len, recipe + 1, kek);

    return result == KH_OK ? KH_OK
                           : ctl_fail(&p->ctl->error, result, "%s: %s (scrypt needs 128 MB); nothing was changed", what,
                                      kh_result_text((int)result));
}

/* From then on both open the store. */
static kh_result begin(phrases *p)
{
    kh_kek_change *change = p->change;
    kh_result result = KH_OK;

    change->recipe[0] = KH_KEK_PASSPHRASE;
    if ((result = kh_kek_params_new(KH_KEK_PASSPHRASE, change->recipe + 1)) != KH_OK) {
        return ctl_fail(&p->ctl->error, result, "%s: no random numbers; nothing was changed", what);
    }
    if ((result = derive(p, &p->next, change->recipe, change->next)) != KH_OK ||
        (result = derive(p, &p->now, p->recipes[0], change->kek)) != KH_OK) {
        return result;
    }
    result = kek_tell(p->agent, change, sizeof(*change));
    /*
     * Interrupted when the file had the next one already. Only then: the agent's keeper would not start again if the one that the
     * agent was started with were given up, and a file is read again before each start.
     */
    if (result == KH_E_PASSPHRASE && p->begun && p->from_file && derive(p, &p->now, p->recipes[1], change->kek) == KH_OK) {
        result = kek_tell(p->agent, change, sizeof(*change));
    }
    if (result == KH_E_PASSPHRASE && p->from_file) {
        ctl_fail(&p->ctl->error, result, "%s: the one in %s does not open the agent's store; put the right one back first", what,
                 p->source);
    } else if (result == KH_E_PASSPHRASE) {
        ctl_fail(&p->ctl->error, result,
                 "%s: that is not the passphrase with which the agent was started%s; nothing was changed", what,
                 p->begun ? " (an earlier change waits for a start with the new one)" : "");
    }
    return result;
}

/* What cannot be ended is taken back: then all is as it was. */
static kh_result take_back(phrases *p, const char *why)
{
    const bool back = kek_tell(p->agent, p->change->kek, KH_KEK_LEN) == KH_OK;

    return ctl_fail(&p->ctl->error, KH_E_IO, "%s: %s cannot be written: %s; %s", what, p->place.next, why,
                    back ? "nothing was changed" : "both passphrases open the store: say it again");
}

static kh_result write_next(phrases *p)
{
    ctl_secret line = {0};
    kh_result result = ctl_secret_new(p->next.len + 1, &line);

    if (result == KH_OK) {
        memcpy(line.data, p->next.data, p->next.len);
        line.data[p->next.len] = '\n';
        (void)unlink(p->place.next); /* of a run that was killed: no start of the agent needs it */
        errno = 0;
        result = kh_kek_line_create(p->place.next, (const char *)line.data, p->next.len + 1);
    }
    ctl_secret_free(&line);
    return result == KH_OK ? KH_OK : take_back(p, errno != 0 ? strerror(errno) : kh_result_text((int)result));
}

/* The file first, then the store: a keeper that starts between the two finds in the file what opens it. */
static kh_result exchange(phrases *p)
{
    kh_result result = write_next(p);

    if (result == KH_OK) {
        result = kek_place_put(p->ctl, &p->place);
    }
    if (result == KH_OK && (result = kek_tell(p->agent, p->change->next, KH_KEK_LEN)) != KH_OK) {
        return ctl_fail(&p->ctl->error, result,
                        "%s has the new passphrase, but the agent did not answer (%s): the one before opens the store, too, until the "
                        "agent starts again or this is said again",
                        p->source, kh_result_text((int)result));
    }
    if (result == KH_OK) {
        (void)printf("the store is sealed under the new passphrase, which is in %s\n"
                     "the one before is in %s: backups and exports from before need it; destroy it when there are none\n",
                     p->source, p->place.old);
    }
    return result;
}

static void say_how_it_ends(const phrases *p)
{
    const bool typed = strcmp(p->source, "-") == 0;

    (void)printf("both passphrases open the store now, the one before until the agent is started with the new one:\n"
                 "%s%s%s and start the agent again\n"
                 "backups and exports from before go on needing the one before\n",
                 typed ? "remember it" : "put it where the agent's unit has ", typed ? "" : p->source, typed ? "" : ",");
}

kh_result kek_rotate_passphrase(ctl_run *ctl, const kh_config *config, ctl_agent *agent)
{
    phrases *p = calloc(1, sizeof(*p));
    kh_result result = p != NULL ? KH_OK : ctl_fail(&ctl->error, KH_E_MEMORY, "out of memory");

    if (p == NULL) {
        return result;
    }
    p->ctl = ctl;
    p->agent = agent;
    p->source = config->kek_passphrase_file;
    if ((result = ctl_secret_new(sizeof(*p->change), &p->keys)) != KH_OK) {
        ctl_fail(&ctl->error, result, "out of memory");
        goto done;
    }
    p->change = (kh_kek_change *)p->keys.data; /* bytes only */
    if ((result = take_arguments(p)) != KH_OK || (result = take_recipes(p)) != KH_OK || (result = take_phrases(p)) != KH_OK ||
        (result = begin(p)) != KH_OK) {
        goto done;
    }
    if (p->from_file) {
        result = exchange(p);
    } else {
        say_how_it_ends(p);
    }
done:
    ctl_secret_free(&p->now);
    ctl_secret_free(&p->next);
    ctl_secret_free(&p->keys);
    free(p);
    return result;
}
