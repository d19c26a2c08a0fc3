package example;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import javax.imageio.ImageIO;
import java.awt.image.Raster;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import pelton.flink.RpcServices;
import pelton.flink.ServiceHandle;
import pelton.flink.ServiceHandle.Delivery;

/** Recognises handwritten digits: PNG images of 8 x 8 pixels become lines of {@code name label score}. */
public final class Digits {
    private static final int SIDE = 8;

    public static void main(String[] words) throws Exception {
        Arguments arguments = new Arguments(words);
        StreamExecutionEnvironment env = StreamExecutionEnvironment.getExecutionEnvironment();
        ServiceHandle classifier = RpcServices.add(env, arguments.service());

        DataStream<Tuple2<String, float[]>> images = env.fromData(images(Path.of(arguments.get("images"))))
                .rebalance()
                .map(file -> Tuple2.of(Path.of(file).getFileName().toString(), pixels(Path.of(file))))
                .returns(Types.TUPLE(Types.STRING, Types.PRIMITIVE_ARRAY(Types.FLOAT)))
                .uid("pixels");
        classifier.call(images, "classify", Delivery.UNORDERED)
                .with("pixels", image -> image.f1)
                .returns(Types.STRING, (image, answer) -> image.f0 + " " + answer.get("label") + " " + answer.get("score"))
                .sinkTo(arguments.output())
                .uid("output");
        env.execute("digits");
    }

    private static List<String> images(Path folder) throws IOException {
        try (Stream<Path> files = Files.list(folder)) {
            return files.map(Path::toString).filter(name -> name.endsWith(".png")).sorted().toList();
        }
    }

    /** Grey values from 0 to 1, row by row. */
    private static float[] pixels(Path file) throws IOException {
        Raster raster = ImageIO.read(file.toFile()).getRaster();
        float[] pixels = raster.getSamples(0, 0, SIDE, SIDE, 0, (float[]) null);
        for (int i = 0; i < pixels.length; i++) {
            pixels[i] /= 255f;
        }
        return pixels;
    }
}
