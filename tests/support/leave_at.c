/* leave_at PID TID FUNCTION PLACE [SIGNAL]: leaves a thread at an instruction with a signal pending, before which it executes nothing more:
 * SIGSTOP, which stops the process by job control, if no other number is given. FUNCTION is an address in base 16. PLACE is `entry`, or
 * so many bytes behind where the jump leads that the function is entered by. */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* Where the jump at the function's entry leads: jmp rel32, or jmp rel8. */
static uint64_t led_to(const unsigned char *code, uint64_t function)
{
	unsigned entry = memcmp(code, "\xf3\x0f\x1e\xfa", 4) ? 0 : 4;
	int32_t distance;

	if (code[entry] == 0xeb)
		return function + entry + 2 + (int64_t)(int8_t)code[entry + 1];
	if (code[entry] != 0xe9)
		exit(2);
	memcpy(&distance, code + entry + 1, sizeof distance);
	return function + entry + 5 + (int64_t)distance;
}

int main(int argc, char **argv)
{
	if (argc != 5 && argc != 6)
		return 1;
	int pid = atoi(argv[1]), tid = atoi(argv[2]), status;
	uint64_t function = strtoull(argv[3], NULL, 16);
	struct user_regs_struct regs;
	unsigned char code[9];
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/mem", pid);
	if (pread(open(path, O_RDONLY), code, sizeof code, (off_t)function) != sizeof code)
		return 1;
	uint64_t wanted = function;
	if (strcmp(argv[4], "entry"))
		wanted = led_to(code, function) + strtoull(argv[4], NULL, 10);
	if (ptrace(PTRACE_SEIZE, tid, 0, 0) || ptrace(PTRACE_INTERRUPT, tid, 0, 0) || waitpid(tid, &status, __WALL) != tid)
		return 3;
	for (;;) {
		if (ptrace(PTRACE_GETREGS, tid, 0, &regs))
			return 4;
		if (regs.rip == wanted)
			break;
		if (ptrace(PTRACE_SINGLESTEP, tid, 0, 0) || waitpid(tid, &status, __WALL) != tid)
			return 5;
	}
	/* For this thread, and so for none that runs on. */
	if (syscall(SYS_tgkill, pid, tid, argc == 6 ? atoi(argv[5]) : SIGSTOP) || ptrace(PTRACE_DETACH, tid, 0, 0))
		return 6;
	return 0;
}
