//! The declaration of a patch.

/// Declares the patch: once in a program, at its root.
///
/// Everything but `objects` may be left out; what is there stands in this order:
///
/// ```text
/// livepatch! {
///     name: "fix",                            the patch's name; else the file's, without ending
///     version: "1.0",
///     description: "what it is for",
///     license: "MIT",
///     depends: ["base"],                      patches that must be enabled
///     replace: true,                          takes the place of every other patch
///     states: { 1 => 2 },                     number => version
///     params: { "limit" => LIMIT },           name => static of type Param
///     init: init,                             fn() -> Result<(), Errno>
///     exit: leave,                            fn()
///     objects: {
///         exe => {                            the main executable; "libz.so.1" => a library
///             build_id: "8a1f...",            this build only
///             pre_patch: prepare,             fn(&Object) -> Result<(), Errno>
///             post_patch: done,               fn(&Object)
///             pre_unpatch: going,             fn(&Object)
///             post_unpatch: gone,             fn(&Object)
///             unsafe funcs: {
///                 "price" => price,           old name => new function
///                 "helper", 2 => helper,      the second symbol of that name
///             },
///         },
///     },
/// }
/// ```
///
/// `unsafe` is the author's word that each new function has the calling convention, the arguments and the result of the old
/// one, and keeps what the program relies on.
///
/// It defines the static `KLP_PATCH`, a [`Patch`](crate::Patch), and the [panic handler](crate::panic()).
#[macro_export]
macro_rules! livepatch {
    (
        $(name: $name:literal,)?
        $(version: $version:literal,)?
        $(description: $description:literal,)?
        $(license: $license:literal,)?
        $(depends: [$($depends:literal),* $(,)?],)?
        $(replace: $replace:expr,)?
        $(states: { $($state:expr => $state_version:expr),* $(,)? },)?
        $(params: { $($param:literal => $variable:expr),* $(,)? },)?
        $(init: $init:expr,)?
        $(exit: $exit:expr,)?
        objects: {
            $($object:tt => {
                $(build_id: $build_id:literal,)?
                $(pre_patch: $pre_patch:expr,)?
                $(post_patch: $post_patch:expr,)?
                $(pre_unpatch: $pre_unpatch:expr,)?
                $(post_unpatch: $post_unpatch:expr,)?
                $(unsafe funcs: { $($old:literal $(, $position:literal)? => $new:expr),* $(,)? } $(,)?)?
            }),* $(,)?
        } $(,)?
    ) => {
        $crate::__livepatch_info!("livepatch=Y");
        $crate::__livepatch_info!("klp_abi=1");
        $($crate::__livepatch_info!("name=", $name);)?
        $($crate::__livepatch_info!("version=", $version);)?
        $($crate::__livepatch_info!("description=", $description);)?
        $($crate::__livepatch_info!("license=", $license);)?
        $($($crate::__livepatch_info!("depends=", $depends);)*)?
        $($($crate::__livepatch_info!("build_id=", $crate::__livepatch_object!(build_id $object), ":", $build_id);)?)*

        /// The patch.
        pub static KLP_PATCH: $crate::Patch = {
            static OBJECTS: &[$crate::Object] = {
                static ALL: [$crate::Object; <[&str]>::len(&[$(stringify!($object)),*]) + 1] = [
                    $({
                        const FUNCS: usize = <[&str]>::len(&[$($($old),*)?]) + 1;
                        static FUNCTIONS: [$crate::Func; FUNCS] = [
                            $($($crate::Func::new(
                                $crate::__livepatch_text!($old),
                                0 $(+ $position)?,
                                $new as *const (),
                            ),)*)?
                            $crate::Func::end(),
                        ];
                        #[allow(unused_mut)]
                        let mut callbacks = $crate::Callbacks::NONE;
                        $(callbacks.pre_patch = Some({
                            unsafe extern "C" fn call(object: *mut $crate::Object) -> $crate::internal::c_int {
                                let function: fn(&$crate::Object) -> Result<(), $crate::Errno> = $pre_patch;
                                // SAFETY: a callback is called with its object.
                                $crate::Errno::of(function(unsafe { &*object }))
                            }
                            call
                        });)?
                        $(callbacks.post_patch = $crate::__livepatch_callback!($post_patch);)?
                        $(callbacks.pre_unpatch = $crate::__livepatch_callback!($pre_unpatch);)?
                        $(callbacks.post_unpatch = $crate::__livepatch_callback!($post_unpatch);)?
                        $crate::Object::new($crate::__livepatch_object!(name $object), &FUNCTIONS, callbacks)
                    },)*
                    $crate::Object::end(),
                ];
                &ALL
            };
            #[allow(unused_mut, unused_assignments)]
            let mut states: Option<&'static [$crate::State]> = None;
            $({
                static ALL: [$crate::State; <[u64]>::len(&[$($state),*]) + 1] =
                    [$($crate::State::new($state, $state_version),)* $crate::State::end()];
                states = Some(&ALL);
            })?
            $crate::Patch::new(OBJECTS, states, false $(|| $replace)?)
        };
        const _: () = {
            #[used]
            #[unsafe(link_section = ".klp.patch")]
            static MARK: &$crate::Patch = &KLP_PATCH;
        };
        $($(const _: () = {
            #[used]
            #[unsafe(link_section = ".klp.param")]
            static ENTRY: $crate::internal::ParamEntry =
                $crate::internal::ParamEntry::new($crate::__livepatch_text!($param), &$variable);
        };)*)?
        $(const _: () = {
            extern "C" fn call() -> $crate::internal::c_int {
                let function: fn() -> Result<(), $crate::Errno> = $init;
                $crate::Errno::of(function())
            }
            #[used]
            #[unsafe(link_section = ".klp.init")]
            static ENTRY: $crate::internal::InitFn<$crate::internal::c_int> = call;
        };)?
        $(const _: () = {
            extern "C" fn call() {
                let function: fn() = $exit;
                function()
            }
            #[used]
            #[unsafe(link_section = ".klp.exit")]
            static ENTRY: $crate::internal::InitFn<()> = call;
        };)?

        #[panic_handler]
        fn panic(info: &::core::panic::PanicInfo<'_>) -> ! {
            $crate::panic(info)
        }

        /// What tables of unwinding in the Rust libraries name: a patch neither catches exceptions nor lets them through.
        #[unsafe(no_mangle)]
        extern "C" fn rust_eh_personality() -> ! {
            panic!("an exception has come to Rust code of the patch")
        }
    };
}

/// One key=value string of the file's metadata.
#[doc(hidden)]
#[macro_export]
macro_rules! __livepatch_info {
    ($($part:expr),*) => {
        const _: () = {
            const TEXT: &str = concat!($($part,)* "\0");
            #[used]
            #[unsafe(link_section = ".modinfo")]
            static INFO: [u8; TEXT.len()] = $crate::internal::bytes(TEXT);
        };
    };
}

/// A literal as C has it.
#[doc(hidden)]
#[macro_export]
macro_rules! __livepatch_text {
    ($text:expr) => {
        match ::core::ffi::CStr::from_bytes_with_nul(concat!($text, "\0").as_bytes()) {
            Ok(text) => text,
            Err(_) => panic!("a name holds a zero"),
        }
    };
}

/// An object's name as the structure has it, and as the metadata do.
#[doc(hidden)]
#[macro_export]
macro_rules! __livepatch_object {
    (name exe) => {
        None
    };
    (name $name:literal) => {
        Some($crate::__livepatch_text!($name))
    };
    (build_id exe) => {
        "exe"
    };
    (build_id $name:literal) => {
        $name
    };
}

/// A callback that cannot refuse.
#[doc(hidden)]
#[macro_export]
macro_rules! __livepatch_callback {
    ($function:expr) => {
        Some({
            unsafe extern "C" fn call(object: *mut $crate::Object) {
                let function: fn(&$crate::Object) = $function;
                // SAFETY: a callback is called with its object.
                function(unsafe { &*object })
            }
            call
        })
    };
}
