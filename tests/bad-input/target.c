#include "target.h"
static volatile int factor = 3;
PATCHABLE int scale(int n) { return n * 2; }
PATCHABLE int price(int n) { return scale(n) + factor; }
static PATCHABLE int twin(int n) { return n + factor; }
int other(int n);
/* No room for a jump, and a neighbour right behind. */
__asm__(".globl tiny, next\n.type tiny, @function\n.type next, @function\n"
	"tiny: ret\n.size tiny, 1\nnext: ret\n.size next, 1\n");
/* A loop whose head is at the second byte: a branch into the bytes of any jump. */
__asm__(".globl loops\n.type loops, @function\n"
	"loops: push %rbx\n1: mov $3, %eax\ndec %edi\njnz 1b\npop %rbx\nret\n.size loops, . - loops\n.skip 16, 0x90\n");
int loops(int n);
/* A jump table that leads to the second instruction, in the bytes of any jump. */
__asm__(".globl tabled\n.type tabled, @function\n"
	"tabled: nop\n1: lea 2f(%rip), %rdx\nmovslq (%rdx, %rdi, 4), %rcx\nadd %rdx, %rcx\njmp *%rcx\n"
	"3: ret\n.size tabled, . - tabled\n.skip 16, 0x90\n"
	".pushsection .rodata\n.p2align 2\n2: .long 3b - 2b, 1b - 2b, 3b - 2b\n.popsection\n");
static void *sleeper(void *arg)
{
	tell("ready");
	for (;;)
		pause();
	return arg;
}
int main(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, sleeper, NULL);
	for (const char *c; (c = command());)
		tell("%d %d %d %d", price(atoi(c)), twin(1), other(1), loops(3));
	return 0;
}
