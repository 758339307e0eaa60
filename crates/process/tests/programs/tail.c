/* A function that ends in a call of one in a library, through the procedure linkage table. The thread is stepped from the
 * beginning of the first to the end of the second. */
#include <signal.h>
int second(int);
static volatile int handled;
void handler(int signal) { handled = signal; }
__attribute__((noinline, noclone)) int first(int n) { return second(n + 1); }
int main(void)
{
	struct sigaction action = { .sa_handler = handler };
	sigaction(SIGUSR1, &action, 0);
	/* Unbound at first, where binding is lazy. */
	int sum = 0;
	for (int i = 0; i < 2; i++)
		sum += first(i) + handled;
	return sum & 1;
}
