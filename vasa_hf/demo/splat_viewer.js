// Shows the Gaussians of a `.splat` file in the page, to be turned: sorted by depth, blended one over the other.
//
// Runs as `js_on_load` of Gradio's HTML component, which gives `element`, `props` and `watch`. The value is
//   { splat: { url }, center: [x, y, z], seen: [x, y, z], focal, name }
// in the axes of geometry/cameras.py (x right, y down, z away): `center` is the point that is orbited, in the world;
// `seen` is that point before the portrait's camera, whose axes are those of the world; `focal` is a fraction of the
// picture's height. The camera is `view_cameras` of camera_paths.py and the drawing that of gaussians/reference.py,
// in 8 bits a channel. Nothing is loaded but the file.

const BYTES = 32;           // of one Gaussian, see gaussians/export.py
const TEXELS = 4;           // of one Gaussian: mean, opacity | xx xy xz yy | yz zz | red, green, blue
const ROW = 2048;           // texels in a row: what every WebGL 2 can do
const STEP = 5;             // degrees that an arrow key turns
const MOST_TILT = 60;       // degrees; from straight above there is no upright
const NEAREST = 0.4, FARTHEST = 3;  // of the portrait's distance
const MOUSE = "Drag to turn; click, then roll the wheel to zoom, or use the arrow keys, + and −.";
const FINGERS = "One finger turns it, two tilt and zoom.";
const SORT_STEPS = 65536;   // depths are told apart to this part of the depth of the whole

const VERTEX = `#version 300 es
precision highp float;
precision highp int;
uniform highp sampler2D gaussians;
uniform mat3 turn;          // camera from world
uniform vec3 shift;
uniform float focal;        // pixels
uniform vec2 size;          // pixels
in uint index;
out vec2 place;             // in standard deviations
out vec4 color;

vec4 texel(int part) {
  int at = int(index) * ${TEXELS} + part;
  return texelFetch(gaussians, ivec2(at % ${ROW}, at / ${ROW}), 0);
}

void main() {
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);  // outside, unless something is to be seen
  vec4 first = texel(0), second = texel(1), third = texel(2);
  vec3 mean = turn * first.xyz + shift;
  if (mean.z < 0.01 || first.w < 1.0 / 255.0) return;
  // The camera is linear about the ray to the Gaussian's middle, or to the margin of what is seen.
  vec2 slope = clamp(mean.xy / mean.z, -0.65 * size / focal, 0.65 * size / focal);
  mat3 linear = mat3(focal, 0, 0, 0, focal, 0, -focal * slope.x, -focal * slope.y, 0) / mean.z;
  mat3 cov = mat3(second.x, second.y, second.z, second.y, second.w, third.x, second.z, third.x, third.y);
  mat3 both = linear * turn;
  cov = both * cov * transpose(both);
  float xx = cov[0][0] + 0.3, yy = cov[1][1] + 0.3, xy = cov[0][1];  // low-pass, in square pixels
  float middle = 0.5 * (xx + yy), apart = length(vec2(0.5 * (xx - yy), xy));
  vec2 axis = apart < 1e-6 ? vec2(1, 0) : normalize(xx > yy ? vec2(xx - middle + apart, xy) : vec2(xy, yy - middle + apart));
  vec2 deviations = sqrt(vec2(middle + apart, max(middle - apart, 0.1)));
  float reach = min(sqrt(2.0 * log(255.0 * first.w)), 3.33);
  place = reach * (vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0);
  vec2 pixel = 0.5 * size + focal * mean.xy / mean.z;
  pixel += place.x * deviations.x * axis + place.y * deviations.y * vec2(-axis.y, axis.x);
  gl_Position = vec4(2.0 * pixel.x / size.x - 1.0, 1.0 - 2.0 * pixel.y / size.y, 0.0, 1.0);
  color = vec4(texel(3).rgb, first.w);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec2 place;
in vec4 color;
out vec4 blended;
void main() {
  float alpha = min(0.999, color.a * exp(-0.5 * dot(place, place)));
  if (alpha < 1.0 / 255.0) discard;
  blended = vec4(color.rgb * alpha, alpha);
}`;

const figure = element.querySelector(".splat-viewer");
const canvas = figure.querySelector("canvas");
const [caption, note] = ["p.where", "p.note"].map((name) => figure.querySelector(name));
const buttons = Object.fromEntries([...figure.querySelectorAll("button")].map((b) => [b.dataset.does, b]));
const START = { azimuth: 0, tilt: 0, distance: 1 };
const eye = { ...START };
let drawing = null, scene = null, asked = 0, waiting = false, dark = document.body.classList.contains("dark");

function tell(state, text) {
  figure.dataset.state = state;
  note.textContent = text;
}

// --- the file --------------------------------------------------------------------------------------------------------

/** Numbers of the texture, and means for sorting, of the bytes of a `.splat`. */
function read(buffer) {
  const count = buffer.byteLength / BYTES;
  if (!count || !Number.isInteger(count)) throw new Error("this is no .splat file");
  const floats = new Float32Array(buffer), bytes = new Uint8Array(buffer);
  const rows = Math.ceil((count * TEXELS) / ROW);
  const texels = new Float32Array(rows * ROW * 4), means = new Float32Array(count * 3);
  for (let i = 0; i < count; i++) {
    const f = i * 8, b = i * BYTES + 24, t = i * TEXELS * 4;
    means.set(floats.subarray(f, f + 3), i * 3);
    const q = [4, 5, 6, 7].map((k) => (bytes[b + k] - 128) / 128);
    const norm = Math.hypot(...q) || 1, [w, x, y, z] = q.map((v) => v / norm);
    const turned = [
      1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
      2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
      2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ];
    const cov = (row, column) =>
      [0, 1, 2].reduce((sum, k) => sum + turned[3 * row + k] * turned[3 * column + k] * floats[f + 3 + k] ** 2, 0);
    texels.set([floats[f], floats[f + 1], floats[f + 2], bytes[b + 3] / 255], t);
    texels.set([cov(0, 0), cov(0, 1), cov(0, 2), cov(1, 1), cov(1, 2), cov(2, 2)], t + 4);
    texels.set([bytes[b] / 255, bytes[b + 1] / 255, bytes[b + 2] / 255], t + 12);
  }
  return { count, rows, texels, means, order: new Uint32Array(count), keys: new Uint16Array(count) };
}

async function load() {
  const value = props.value, mine = ++asked;
  if (!value || !value.splat) return;
  tell("loading", "Loading …");
  try {
    const answer = await fetch(value.splat.url);
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const loaded = read(await answer.arrayBuffer());
    if (mine !== asked) return;  // another one was asked for meanwhile
    scene = { ...loaded, ...value };
    canvas.setAttribute("aria-label", `${value.name || "Avatar"} in 3D. ${canvas.dataset.keys}`);
    if (drawing) upload();
    else start();
  } catch (error) {
    if (mine === asked) tell("failed", `The Gaussians cannot be shown: ${error.message}.`);
  }
}

// --- drawing ---------------------------------------------------------------------------------------------------------

function start() {
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
  if (!gl) {
    tell("failed", "This browser has no WebGL 2, which turning needs. The sliders of “View from this side” and “Export the Gaussians” work without.");
    return;
  }
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) throw new Error(gl.getShaderInfoLog(shader));
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  const at = Object.fromEntries(["turn", "shift", "focal", "size"].map((name) => [name, gl.getUniformLocation(program, name)]));
  const place = gl.getAttribLocation(program, "index");
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.enableVertexAttribArray(place);
  gl.vertexAttribIPointer(place, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(place, 1);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);  // colours are multiplied by alpha already
  drawing = { gl, at };
  upload();
}

function upload() {
  const { gl } = drawing;
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, ROW, scene.rows, 0, gl.RGBA, gl.FLOAT, scene.texels);
  tell("shown", `${scene.count.toLocaleString("en")} Gaussians. ${matchMedia("(pointer: coarse)").matches ? FINGERS : MOUSE}`);
  draw();
}

/** Rotation, row by row, and shift of the camera, as `view_cameras` does it. */
function camera() {
  const [a, e] = [eye.azimuth, eye.tilt].map((degrees) => (degrees * Math.PI) / 180);
  const [sa, ca, se, ce] = [Math.sin(a), Math.cos(a), Math.sin(e), Math.cos(e)];
  const turn = [ca, 0, sa, se * sa, ce, -se * ca, -sa * ce, se, ca * ce];
  const c = scene.center;
  const shift = [0, 1, 2].map(
    (i) => eye.distance * scene.seen[i] - turn[3 * i] * c[0] - turn[3 * i + 1] * c[1] - turn[3 * i + 2] * c[2],
  );
  return { turn, shift };
}

/** Order the Gaussians from back to front, by counting. */
function sort(turn) {
  const { count, means, order, keys } = scene;
  const depth = (i) => turn[6] * means[3 * i] + turn[7] * means[3 * i + 1] + turn[8] * means[3 * i + 2];
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < count; i++) {
    const z = depth(i);
    if (z < low) low = z;
    if (z > high) high = z;
  }
  const scale = (SORT_STEPS - 1) / (high - low || 1), starts = new Uint32Array(SORT_STEPS + 1);
  for (let i = 0; i < count; i++) {
    keys[i] = (high - depth(i)) * scale;  // cut to whole numbers by its array
    starts[keys[i] + 1]++;
  }
  for (let k = 0; k < SORT_STEPS; k++) starts[k + 1] += starts[k];
  for (let i = 0; i < count; i++) order[starts[keys[i]]++] = i;
}

function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (!drawing || !scene) return;
    const { gl, at } = drawing, ratio = Math.min(window.devicePixelRatio || 1, 2);
    const side = Math.min(Math.round(canvas.clientWidth * ratio), 1536);
    if (!side || gl.isContextLost()) return;  // in a tab that is not open
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const { turn, shift } = camera();
    sort(turn);
    gl.viewport(0, 0, side, side);
    gl.uniformMatrix3fv(at.turn, true, turn);
    gl.uniform3fv(at.shift, shift);
    gl.uniform1f(at.focal, scene.focal * side);
    gl.uniform2f(at.size, side, side);
    const grey = dark ? 0.1 : 1;
    gl.clearColor(grey, grey, grey, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.bufferData(gl.ARRAY_BUFFER, scene.order, gl.DYNAMIC_DRAW);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, scene.count);
    figure.dataset.drawn = Number(figure.dataset.drawn || 0) + 1;
  });
}

// --- turning ---------------------------------------------------------------------------------------------------------

function look(change) {
  Object.assign(eye, change);
  eye.azimuth = ((((eye.azimuth + 180) % 360) + 360) % 360) - 180;
  eye.tilt = Math.min(Math.max(eye.tilt, -MOST_TILT), MOST_TILT);
  eye.distance = Math.min(Math.max(eye.distance, NEAREST), FARTHEST);
  const side = eye.azimuth > 0 ? "right" : "left", height = eye.tilt < 0 ? "below" : "above";
  const [turned, tilted] = [eye.azimuth, eye.tilt].map((degrees) => Math.round(Math.abs(degrees)));
  caption.textContent = turned || tilted ? `${turned}° from the ${side}, ${tilted}° from ${height}` : "from the front";
  draw();
}

const KEYS = {
  ArrowLeft: () => ({ azimuth: eye.azimuth - STEP }),
  ArrowRight: () => ({ azimuth: eye.azimuth + STEP }),
  ArrowUp: () => ({ tilt: eye.tilt + STEP }),
  ArrowDown: () => ({ tilt: eye.tilt - STEP }),
  "+": () => ({ distance: eye.distance / 1.1 }),
  "=": () => ({ distance: eye.distance / 1.1 }),
  "-": () => ({ distance: eye.distance * 1.1 }),
  0: () => START,
  Home: () => START,
};
canvas.addEventListener("keydown", (event) => {
  if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  look(KEYS[event.key]());
});
buttons.front.addEventListener("click", () => look(START));
buttons.background.addEventListener("click", () => {
  dark = !dark;
  buttons.background.setAttribute("aria-pressed", dark);
  draw();
});
buttons.background.setAttribute("aria-pressed", dark);

// One finger or the mouse turns; two fingers tilt and zoom, as one that moves up or down scrolls the page.
const pointers = new Map();
const spread = () => {
  const [one, two] = [...pointers.values()];
  return Math.hypot(one.x - two.x, one.y - two.y) || 1;
};
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
});
canvas.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const apart = pointers.size === 2 ? spread() : 0, degrees = 180 / canvas.clientWidth / pointers.size;
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  look({
    azimuth: eye.azimuth - (event.clientX - before.x) * degrees,
    tilt: eye.tilt + (event.clientY - before.y) * degrees,
    distance: pointers.size === 2 ? (eye.distance * apart) / spread() : eye.distance,
  });
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
canvas.addEventListener("wheel", (event) => {
  if (document.activeElement !== canvas) return;  // who only scrolls past must not be held
  event.preventDefault();
  look({ distance: eye.distance * Math.exp(event.deltaY / 600) });
}, { passive: false });

canvas.addEventListener("webglcontextlost", (event) => {
  event.preventDefault();
  drawing = null;
  tell("loading", "The graphics device was lost; waiting for it …");
});
canvas.addEventListener("webglcontextrestored", () => scene && start());
new ResizeObserver(draw).observe(canvas);
watch("value", load);
load();
