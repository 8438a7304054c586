import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.stream.Collectors;

/**
 * The HTTP client of the JDK, as Spring AI, LangChain4j and JetBrains use it: over plain http it offers HTTP/2 with each
 * request (`Connection: Upgrade, HTTP2-Settings`, `Upgrade: h2c`) unless it is told not to.
 *
 * Reads a call per line, "HTTP_2 KEY http://…/v1/chat/completions {…}"; a GET where no body follows. Prints its status, the version that was spoken and the body's lines joined by U+001F, with tabs between.
 */
class JdkClient {
    public static void main(String[] arguments) throws Exception {
        BufferedReader calls = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        HttpClient client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10)).build();
        System.out.println("ready");
        for (String line; (line = calls.readLine()) != null; ) {
            String[] parts = line.split(" ", 4);
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(parts[2]))
                .version(HttpClient.Version.valueOf(parts[0]))
                .timeout(Duration.ofSeconds(60))
                .header("Authorization", "Bearer " + parts[1]);
            if (parts.length == 4) {
                request.header("Content-Type", "application/json");
                request.POST(HttpRequest.BodyPublishers.ofString(parts[3]));
            }
            HttpResponse<java.util.stream.Stream<String>> answer =
                client.send(request.build(), HttpResponse.BodyHandlers.ofLines());
            String body = answer.body().collect(Collectors.joining("\u001f"));
            System.out.println(answer.statusCode() + "\t" + answer.version() + "\t" + body);
        }
    }
}
