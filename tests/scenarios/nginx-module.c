// A plugin host that nobody here wrote: Debian's nginx, and a dynamic module that it does not load yet. A patch for the module
// is loaded into the master process first. A reload of the configuration loads the module, and the workers that the master makes
// then answer by the new function, with no tool around. A reload without the module lets go of it, one with it patches it again.
// The master's patch and those of its workers are disabled each by itself.

//@ needs /usr/sbin/nginx /usr/lib/nginx/modules/ngx_http_echo_module.so curl pgrep
//@ file nginx.conf
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 64; }
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	server { listen unix:socket; location / { return 200 "plain\n"; } }
}

//@ file fix.c
#include <ugraft/livepatch.h>
/* As <ngx_http_variables.h> has it. */
struct value {
	unsigned len : 28, valid : 1, no_cacheable : 1, not_found : 1, escape : 1;
	const char *data;
};

static long method(void *request, struct value *value, unsigned long data)
{
	static const char text[] = "PATCHED";

	value->len = sizeof(text) - 1;
	value->valid = 1;
	value->no_cacheable = 0;
	value->not_found = 0;
	value->data = text;
	return 0;
}

static struct klp_func funcs[] = {
	{ .old_name = "ngx_http_echo_request_method_variable", .new_func = method }, {}
};
static struct klp_object objs[] = { { .name = "ngx_http_echo_module.so", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);


// The same with the module, for an answer that only the module can give.
//@ build sed 's|^daemon|load_module /usr/lib/nginx/modules/ngx_http_echo_module.so; daemon|; s|return.*"|echo "$echo_request_method"|' nginx.conf > with.conf
//@ build cp nginx.conf without.conf

//@ start master: /usr/sbin/nginx -p "$PWD" -e stderr -c "$PWD/nginx.conf"
//@ until curl -s --unix-socket socket http://localhost/ | grep plain
//@ $ ugraft check fix.o --pid $master
//>  object                   function                               address  verdict
//>  ngx_http_echo_module.so  ngx_http_echo_request_method_variable           its object is not loaded
//> patch 'fix' can be loaded into process $master
//@ $ ugraft load fix.o --pid $master --timeout 60s
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)

// The first answer of the module's is the new function's.
//@ $ cp with.conf nginx.conf && kill -HUP $master
//@ until curl -s --unix-socket socket http://localhost/ | grep -v plain > answer
//@ $ cat answer
//> PATCHED
//@ $ ugraft log --pid $master | tail -1 | sed 's/[^ ]* //'
//> livepatch: applying patch 'fix' to loading module 'ngx_http_echo_module.so'

// The worker is a process of its own, with a patch of its own, once the one from before has gone.
//@ until test "$(pgrep -c -P $master)" = 1
//@ $ pgrep -P $master
//> [=worker]
//@ $ ugraft status --pid $worker
//> process $worker (nginx)
//>  patch  version  state    objects                  functions
//>  fix             enabled  ngx_http_echo_module.so  ngx_http_echo_request_method_variable
//> no patch is in transition
//@ $ ugraft disable fix --pid $worker --timeout 60s
//> patch 'fix': disabled (1 thread, longest pause [..], [..] in all)
//@ $ curl -s --unix-socket socket http://localhost/
//> GET
//@ $ ugraft enable fix --pid $worker --timeout 60s --quiet
//@ $ curl -s --unix-socket socket http://localhost/
//> PATCHED
//@ $ ugraft disable fix --pid $worker --timeout 60s --quiet && ugraft unload fix --pid $worker --timeout 60s --quiet
//@ $ curl -s --unix-socket socket http://localhost/
//> GET

// Without the module, with it again.
//@ $ cp without.conf nginx.conf && kill -HUP $master
//@ until curl -s --unix-socket socket http://localhost/ | grep plain
//@ until test "$(pgrep -c -P $master)" = 1
//@ $ ugraft log --pid $master | tail -1 | sed 's/[^ ]* //'
//> livepatch: reverting patch 'fix' on unloading module 'ngx_http_echo_module.so'
//@ $ cp with.conf nginx.conf && kill -HUP $master
//@ until curl -s --unix-socket socket http://localhost/ | grep -v plain > answer
//@ $ cat answer
//> PATCHED

// Disabled in the master: the workers that it makes from now on have the module as it was built.
//@ $ ugraft disable fix --pid $master --timeout 60s
//> patch 'fix': disabled (1 thread, longest pause [..], [..] in all)
//@ $ kill -HUP $master
//@ until curl -s --unix-socket socket http://localhost/ | grep GET
//@ $ ugraft unload fix --pid $master --timeout 60s --quiet
//@ at master alive
//@ at master clean
//@ $ kill -QUIT $master
//@ at master wait
