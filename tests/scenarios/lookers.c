// Whoever looks keeps nobody from changing, and is kept by nobody: six pollers ask for the status, the list, the log, a parameter,
// a check and the list of all processes at full speed while patches are loaded, replaced, disabled, enabled and unloaded in a loop. No command of either kind
// fails, and all that is read is a state that there was. Then the same with the changing tool killed at random, and with it stopped
// at random: looking works, and tells who is at work.

//@ needs /usr/bin/python3
//@ file target.c
#include "target.h"
PATCHABLE int f(void) { return 1; }
PATCHABLE int g(void) { return 1; }
static volatile int over;
static void *run(void *arg)
{
	while (!over) {
		if (f() > 3 || g() > 3)
			tell("complaint");
		usleep(200);
	}
	return arg;
}
int main(void)
{
	pthread_t threads[6];
	for (int i = 0; i < 6; i++)
		pthread_create(&threads[i], NULL, run, NULL);
	tell("ready");
	while (command())
		tell("f %d g %d", f(), g());
	over = 1;
	for (int i = 0; i < 6; i++)
		pthread_join(threads[i], NULL);
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
#include <ugraft/module.h>
static int level = 3;
module_param(level, int, 0644);
#ifndef REPLACE
static int f(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
#define REPLACE 0
#else
static int g(void) { return level; }
static struct klp_func funcs[] = { { .old_name = "g", .new_func = g }, {} };
#endif
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = REPLACE };
KLP_PATCH(patch);
//@ build cc -O2 -c -I$SDK fix.c && cc -O2 -c -DREPLACE=1 -I$SDK fix.c -o all.o

//@ file look.py
import json, os, random, re, signal, subprocess, sys, threading, time

pid, phase = sys.argv[1:]
ROUND = [["load", "fix.o"], ["load", "all.o"], ["disable", "all"], ["enable", "all"], ["disable", "all"], ["unload", "fix"],
         ["unload", "all"]]
# The lives of `fix` and `all` that this round leads through, by what is in transition.
STEADY = {"", "fix enabled", "fix replaced, all enabled", "fix replaced, all disabled", "all disabled"}
MOVING = {"fix enabling", "fix enabled, all enabling", "fix replaced, all enabling", "fix replaced, all disabling"}
MESSAGE = re.compile(r"livepatch: (enabling patch '(fix|all)'|'(fix|all)': ((initializing|starting|completing) (un)?patching "
                     r"transition|(un)?patching complete|canceling patching transition, going to unpatch|reversing transition "
                     r"from (un)?patching to (un)?patching))$")
problems, counts, over = [], {}, threading.Event()


def ugraft(*words):
    command = ["ugraft", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout + done.stderr


def lives(patches):
    return ", ".join(f"{patch['name']} {patch['life']}" for patch in patches)


def judge_status(code, said):
    status = said["status"]
    patches, transition = lives(status["patches"]), status["transition"]
    assert code == (3 if not patches else 5 if transition else 0), "exit code"
    assert bool(transition) == ("ing" in patches), "transition"
    assert transition is None or 0 <= transition["pending"] <= transition["threads"] == 7, "threads"
    if phase == "change":
        assert patches in (MOVING if transition else STEADY), patches


def judge_list(code, said):
    assert code == 3 and said["error"]["kind"] == "not_patched" or code == 0 and said["patches"]
    if phase == "change" and code == 0:
        assert lives(said["patches"]) in MOVING | STEADY


def judge_log(code, said):
    assert code == 3 or code == 0
    for message in said.get("messages", []):
        assert MESSAGE.match(message["text"]), message["text"]


def judge_param(code, said):
    assert code in (3, 4) or said["params"] == [{"kind": "int", "name": "level", "value": "3"}]


def judge_check(code, said):
    check = said["check"]
    assert code == (0 if check["ok"] else 6) and check["funcs"][0]["name"] == "f"


def judge_all(code, said):
    ours = [process for process in said["processes"] if process["pid"] == int(pid)]
    assert code == 0 and len(ours) <= 1
    if phase == "change" and ours:
        assert lives(ours[0]["patches"]) in MOVING | STEADY


LOOKS = {judge_status: ["status"], judge_list: ["list"], judge_log: ["log"], judge_param: ["param", "fix"],
         judge_check: ["check", "fix.o"], judge_all: ["list"]}


def look(judge):
    words = LOOKS[judge] if judge is judge_all else LOOKS[judge] + ["--pid", pid]
    code, text = ugraft(*words)
    try:
        judge(code, json.loads(text))
    except (AssertionError, KeyError, ValueError) as e:
        problems.append(f"{' '.join(LOOKS[judge])}: {type(e).__name__} {e}: exit code {code}: {text}")
    counts[judge] = counts.get(judge, 0) + 1
    return text


def poll(judge):
    while not over.is_set():
        look(judge)


def change(words, codes=(0,)):
    code, text = ugraft(*words, "--timeout", "60s", "--pid", pid)
    if code not in codes:
        problems.append(f"{' '.join(words)}: exit code {code}: {text}")


def start(words):
    command = ["ugraft", *words, "--pid", pid, "--timeout", "60s"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def changed():
    for _ in range(2):
        for words in ROUND:
            change(words)


def cut_short(interrupt, wanted):
    """Has `interrupt` meet commands somewhere in their run, until it has met so many at work."""
    begun, met, n = time.monotonic(), 0, 0
    change(ROUND[0])
    longest = time.monotonic() - begun
    while met < wanted or n % len(ROUND):
        n += 1
        tool = start(ROUND[n % len(ROUND)])
        time.sleep(random.random() * longest)
        early = interrupt(tool)
        met += early is None
        # A machine with much to do is sometimes slow and sometimes not.
        longest *= {None: 1, True: 1.3, False: 0.8}[early]


def kill(tool):
    """None if it was cut short; whoever is killed has no lock any more."""
    tool.kill()
    tool.communicate()
    return None if tool.returncode < 0 else False


def stop(tool):
    """None if it was at work, True if it was not yet, False if it was at its end."""
    os.kill(tool.pid, signal.SIGSTOP)
    while (state := open(f"/proc/{tool.pid}/stat").read().rsplit(")", 1)[1].split()[0]) not in "TZ":
        time.sleep(0.001)
    texts = {judge: look(judge) for judge in LOOKS}
    status = json.loads(texts[judge_status])["status"]
    if status["tool_at_work"] and status["tool"] != {"pid": tool.pid, "stopped": True}:
        problems.append(f"who is at work: {texts[judge_status]}")
    os.kill(tool.pid, signal.SIGCONT)
    said = tool.communicate()[0]
    if tool.returncode:
        problems.append(f"stopped for a while: exit code {tool.returncode}: {said}")
    return None if status["tool_at_work"] else state == "T"


def killed():
    cut_short(kill, 6)
    for words in [["disable", "all"], ["disable", "fix"], ["unload", "all"], ["unload", "fix"]]:
        change(words, (0, 3, 4))


def stopped():
    cut_short(stop, 3)
    for words in ROUND[1:]:
        change(words)


pollers = [threading.Thread(target=poll, args=(judge,)) for judge in LOOKS if phase != "stop"]
for poller in pollers:
    poller.start()
{"change": changed, "kill": killed, "stop": stopped}[phase]()
over.set()
for poller in pollers:
    poller.join()
print("\n".join(problems[:20]) or f"{len(counts)} kinds of looks, no problem")

//@ start target
//@ expect ready
//@ $ /usr/bin/python3 look.py $PID change
//> 6 kinds of looks, no problem
//@ clean
//@ $ /usr/bin/python3 look.py $PID change
//> 6 kinds of looks, no problem
//@ clean
//@ $ /usr/bin/python3 look.py $PID kill
//> 6 kinds of looks, no problem
//@ clean
//@ $ /usr/bin/python3 look.py $PID stop
//> 6 kinds of looks, no problem
//@ clean
//@ say ?
//@ expect f 1 g 1
//@ never complaint
//@ alive
