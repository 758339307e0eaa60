//! What makes an object file a patch to the tool that links it: the metadata of one that changes nothing.

/// `struct klp_patch` and the empty `struct klp_object` that ends its objects (sdk/include/ugraft/livepatch.h).
#[repr(C)]
struct Patch {
    module: usize,
    objs: &'static [usize; 10],
    states: usize,
    replace: bool,
    reserved: [usize; 2],
}

static OBJECTS: [usize; 10] = [0; 10];
static PATCH: Patch = Patch { module: 0, objs: &OBJECTS, states: 0, replace: true, reserved: [0; 2] };

#[used]
#[unsafe(link_section = ".klp.patch")]
static MARK: &Patch = &PATCH;

#[used]
#[unsafe(link_section = ".modinfo")]
static ABI: [u8; 10] = *b"klp_abi=1\0";
