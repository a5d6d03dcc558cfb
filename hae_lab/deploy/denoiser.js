// A model that draws in a page. `DATA` and the packed files stand in the page; nothing is asked for.

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function openSession() {
  const script = new Blob([await unpacked("hae-script")], { type: "text/javascript" });
  const ort = await import(URL.createObjectURL(script));
  ort.env.wasm.numThreads = 1; // pages from disk have no shared memory for more
  ort.env.wasm.wasmBinary = await unpacked("hae-program");
  return { ort, session: await ort.InferenceSession.create(await unpacked("hae-model")) };
}

// what the model says to images (count, C, H, W) at one timestep; label -1 is "none"
async function predict({ ort, session }, images, count, timestep, label) {
  const feeds = {
    x: new ort.Tensor("float32", images, [count, ...DATA.shape]),
    timesteps: new ort.Tensor("float32", new Float32Array(count).fill(timestep), [count]),
  };
  if (DATA.labels.length) feeds.y = new ort.Tensor("int64", new BigInt64Array(count).fill(BigInt(label)), [count]);
  return (await session.run(feeds)).output.data;
}

function mix(images, output, [ofImages, ofOutput]) {
  return images.map((value, place) => ofImages * value + ofOutput * output[place]);
}

// a DDIM step is linear in the images and in the output; DATA.chains has its numbers
async function* denoise(model, noise, label, steps) {
  const count = noise.length / (DATA.shape[0] * DATA.shape[1] * DATA.shape[2]);
  let images = noise;
  for (const { timestep, next, clean } of DATA.chains[steps]) {
    const output = await predict(model, images, count, timestep, label);
    const seen = mix(images, output, clean);
    images = mix(images, output, next);
    yield { timestep, images, clean: seen };
  }
}

function normalNoise(length) {
  return Float32Array.from({ length }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
    return radius * Math.cos(2 * Math.PI * Math.random()); // Box and Muller
  });
}

// images (count, C, H, W) in [-1, 1] side by side, one row of the canvas; three channels are colours, else the first
function paint(canvas, images, row) {
  const [channels, height, width] = DATA.shape;
  const pixels = height * width;
  const context = canvas.getContext("2d");
  for (let index = 0; index < DATA.count; index++) {
    const picture = context.createImageData(width, height);
    for (let place = 0; place < pixels; place++) {
      for (let colour = 0; colour < 3; colour++) {
        const channel = channels === 3 ? colour : 0;
        picture.data[4 * place + colour] = 127.5 * (1 + images[(index * channels + channel) * pixels + place]);
      }
      picture.data[4 * place + 3] = 255;
    }
    context.putImageData(picture, index * (width + 1), row * (height + 1));
  }
}

async function start(root) {
  const part = (name) => root.querySelector(`[name=${name}]`);
  const status = root.querySelector(".hae-status");
  const canvas = root.querySelector("canvas");
  const [channels, height, width] = DATA.shape;
  canvas.width = DATA.count * (width + 1) - 1;
  canvas.height = 2 * height + 1;
  let drawing = 0;

  async function draw(noise) {
    const mine = ++drawing; // a later drawing ends this one
    const label = part("label") ? Number(part("label").value) : -1;
    const steps = Number(part("steps").value);
    let number = 0;
    let ms = 0;
    let last = noise;
    paint(canvas, noise, 0);
    paint(canvas, new Float32Array(noise.length), 1);
    let before = performance.now();
    for await (const step of denoise(root.model, noise, label, steps)) {
      ms += performance.now() - before;
      if (mine !== drawing) return null;
      paint(canvas, step.images, 0);
      paint(canvas, step.clean, 1);
      number += 1;
      const speed = `${(ms / number).toFixed(0)} ms a step for ${DATA.count} images`;
      status.textContent = `step ${number} of ${steps}, timestep ${step.timestep}: ${speed}`;
      last = step.images;
      await new Promise(requestAnimationFrame);
      before = performance.now();
    }
    return last;
  }

  try {
    root.model = await openSession();
  } catch (error) {
    status.textContent = `This browser cannot run the model: ${error.message}`;
    throw error;
  }
  root.draw = (noise) => draw(noise ?? normalNoise(DATA.count * channels * height * width));
  part("draw").disabled = false;
  for (const name of ["draw", "label", "steps"]) {
    part(name)?.addEventListener(name === "draw" ? "click" : "change", () => root.draw());
  }
  root.dataset.ready = "yes";
  await root.draw();
}

start(document.querySelector(".hae-denoiser"));
